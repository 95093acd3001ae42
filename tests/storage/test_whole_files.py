"""Full disks, read-only and vanished folders: files appear whole or not at all."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from host_helpers import hooked_model, runner_config, signalling, tiny_dataset, tiny_model
from own_runs import file_size_limited_to, run_ours
from sae_lens import SAE
from safetensors import SafetensorError
from short_trainings import batches, new_trainer, poisoned, take_steps
from small_saes import D_IN, make_sae

from sae_lens_hsae.sae.bad_batches import BadBatchError
from sae_lens_hsae.storage.whole_files import (
    check_file_writable,
    check_writable,
    file_written_whole,
    files_written_whole,
    folder_written_whole,
    write_whole,
)
from sae_lens_hsae.training.checkpoints import verify
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner, Interrupted
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer


def test_a_full_disk_leaves_the_last_checkpoint_untouched(tmp_path):
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 2)
    trainer.save_checkpoint("64", base_path=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "64").iterdir()}
    sizes = sorted({len(content) for content in before.values()})
    for limit in (0, *(size - 1 for size in sizes)):
        for name in ("64", "128"):
            remedy = f"Make room, .* go on with resume_from_checkpoint='{tmp_path}/64'"
            with file_size_limited_to(limit), pytest.raises(OSError, match=f"{name}' could not be written .* {remedy}"):
                trainer.save_checkpoint(name, base_path=tmp_path)
            assert {path: path.read_bytes() for path in (tmp_path / "64").iterdir()} == before
            assert [path.name for path in tmp_path.iterdir()] == ["64"]
    verify(tmp_path / "64")


def test_a_full_disk_leaves_the_last_model_untouched(tmp_path):
    cfg, _ = run_ours(tmp_path)
    output = Path(str(cfg.output_path))
    (output / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in output.iterdir()}
    sae = make_sae(d_in=D_IN)
    runner = HierarchicalSAETrainingRunner(cfg, override_model=tiny_model(), override_dataset=tiny_dataset())
    for limit in (0, 1000):  # not even small files; small ones alone
        with file_size_limited_to(limit), pytest.raises(OSError, match=r"model could not be written .* Make room"):
            runner.save_final_sae(sae, str(output))
        with file_size_limited_to(limit), pytest.raises((OSError, SafetensorError)):
            sae.save_inference_model(output)
        assert {path: path.read_bytes() for path in output.iterdir()} == before
    runner.save_final_sae(sae, str(output))
    assert SAE.load_from_disk(output).cfg.d_sae == sae.cfg.d_sae
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("n_checkpoints", [0, 2])
def test_a_model_that_its_place_does_not_take_is_saved_beside_the_checkpoints(tmp_path, n_checkpoints):
    cfg = runner_config(tmp_path, n_checkpoints=n_checkpoints)
    runner = HierarchicalSAETrainingRunner(cfg, override_model=tiny_model(), override_dataset=tiny_dataset())
    Path(str(cfg.output_path)).write_text("a file")
    elsewhere = Path(str(cfg.checkpoint_path)) / "model"
    with pytest.raises(OSError, match=rf"model could not be written to .* It is in '{elsewhere}' instead"):
        runner.run()
    saved: Any = SAE.load_from_disk(elsewhere)
    trained: Any = runner.sae
    assert torch.equal(saved.W_dec, trained.W_dec)
    assert torch.equal(saved.parents, trained.parents)
    # Where nothing can be written, the remedy is one that there is.
    newest = rf"go on with resume_from_checkpoint='{elsewhere.parent}/1344'"
    with file_size_limited_to(0):
        with pytest.raises(OSError, match=newest if n_checkpoints else "train again: there is no checkpoint"):
            runner.save_final_sae(runner.sae, str(cfg.output_path))
        cfg.checkpoint_path = None
        with pytest.raises(OSError, match="Make room, or choose another output_path, and train again"):
            runner.save_final_sae(runner.sae, str(cfg.output_path))


@pytest.mark.parametrize("fault", [signalling(signal.SIGTERM), poisoned(torch.nan)])
def test_a_run_that_is_stopped_ends_so_even_if_its_checkpoint_cannot_be_written(tmp_path, caplog, fault):
    def stop(tensor: torch.Tensor) -> torch.Tensor:
        (tmp_path / "checkpoints").write_text("a file")
        return fault(tensor)

    with pytest.raises((Interrupted, BadBatchError), match=r"stopped by SIGTERM|in part NaN"):
        run_ours(tmp_path, "", model=hooked_model(stop, at=11))
    assert "could not be written" in caplog.text
    assert "train again: there is no checkpoint" in caplog.text


def test_a_model_that_cannot_be_saved_leaves_the_one_before(tmp_path):
    make_sae().save_inference_model(folder := tmp_path / "folder")
    loaded = SAE.load_from_disk(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for sae, save in (
        (loaded, "save_model"),
        (make_sae(seed=1), "save_model"),
        (make_sae(seed=1), "save_inference_model"),
    ):
        sae.cfg.metadata.note = torch.ones(1)  # JSON cannot hold it, which is found when the weights are written
        with pytest.raises(TypeError, match="not JSON serializable"):
            getattr(sae, save)(folder)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        del sae.cfg.metadata.note
        assert [path.is_file() for path in getattr(sae, save)(tmp_path / save)] == [True, True]


def test_a_vanished_folder_is_made_again_and_an_impossible_one_is_an_error(tmp_path):
    trainer = new_trainer(HierarchicalSAETrainer)
    base = tmp_path / "runs" / "one"
    trainer.save_checkpoint("0", base_path=base)
    shutil.rmtree(tmp_path / "runs")
    trainer.save_checkpoint("0", base_path=base)
    verify(base / "0")
    shutil.rmtree(base)
    base.write_text("a file")
    with pytest.raises(OSError, match=r"the checkpoint .* could not be written"):
        trainer.save_checkpoint("0", base_path=base)


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("output_path", {}),
        ("checkpoint_path", {"n_checkpoints": 1}),
        ("checkpoint_path", {"n_checkpoints": 0}),  # an interruption writes there all the same
    ],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_training(tmp_path, field, overrides):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=rf"{field}=.*file' is no folder; give another path"):
        run_ours(tmp_path, **{field: str(tmp_path / "file" / "below")}, **overrides)


@pytest.mark.skipif(sys.platform == "win32", reason="asks for POSIX permissions")
def test_a_read_only_place_is_refused():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        pid = os.fork()
        if not pid:
            if os.geteuid() == 0:  # who may write anywhere
                os.setuid(65534)
            try:
                check_writable("output_path", Path(folder) / "a" / "b")
            except PermissionError as error:
                os._exit(0 if f"{folder}' cannot be written to; give another path" in str(error) else 2)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        Path(folder).chmod(0o755)
        check_writable("output_path", Path(folder) / "a" / "b")


@pytest.mark.parametrize("write", [file_written_whole, folder_written_whole])
def test_where_nothing_can_be_written_the_error_names_no_temporary_file(tmp_path, write):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc")):
        with pytest.raises(OSError, match="cannot be written to") as error, write(folder / "name"):
            pass
        assert error.value.filename == str(folder)
        assert ".unfinished" not in str(error.value)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "name").mkdir()
    with pytest.raises(OSError, match="cannot be replaced") as error, file_written_whole(tmp_path / "name") as aside:
        aside.touch()
    assert error.value.filename == str(tmp_path / "name")
    assert ".unfinished" not in str(error.value)


def test_a_link_stays_one_and_a_device_is_refused(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("file")
    write_whole(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    with pytest.raises(ValueError, match="output='/dev/null' is no ordinary file"):
        check_file_writable("output", Path("/dev/null"))


def test_files_that_cannot_all_take_their_places_leave_those_before(tmp_path):
    (tmp_path / "b").write_text("old")
    (tmp_path / "key").write_text("old")
    (tmp_path / "c").mkdir()
    with pytest.raises(OSError, match="cannot be replaced"), files_written_whole(tmp_path, "key") as new:  # noqa: PT012 – the block is what is tested
        for name in ("key", "a", "b", "c"):  # a is put in place before c fails, and there was none
            (new / name).write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c", "key"]
    assert (tmp_path / "b").read_text() == (tmp_path / "key").read_text() == "old"


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    for writer in (folder_written_whole, lambda folder: files_written_whole(folder, "key")):
        with writer(target) as new:
            (new / "key").write_text("first")
        with pytest.raises(FileNotFoundError), writer(target) as new:  # noqa: PT012 – the block is what is tested
            (new / "key").write_text("second")
            (new / "missing").read_text()
        assert (target / "key").read_text() == "first"
        assert [path.name for path in target.iterdir()] == ["key"]
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no inodes")
def test_what_takes_its_place_is_on_the_disk_by_then(tmp_path, monkeypatch):
    flushed = set()
    original = os.fsync

    def fsync(file):
        flushed.add(os.fstat(file).st_ino)
        original(file)

    monkeypatch.setattr(os, "fsync", fsync)
    renamed = []

    def watch(event, arguments):
        if event == "os.rename" and str(tmp_path) in str(arguments[0]):
            path = Path(arguments[0])
            parts = [path, *path.rglob("*")]
            renamed.append((path.name, [part.name for part in parts if part.stat().st_ino not in flushed]))

    sys.addaudithook(watch)  # which cannot be taken away, but sees nothing of other tests' folders
    with folder_written_whole(tmp_path / "folder") as new:
        (new / "below").mkdir()
        (new / "below" / "a").write_text("1")
        (new / "b").write_text("2")
    with files_written_whole(tmp_path / "files", "b") as new:
        (new / "a").write_text("1")
        (new / "b").write_text("2")
    with file_written_whole(tmp_path / "file") as aside:
        aside.write_text("1")
    assert renamed == [("folder", []), ("a", []), ("b", []), ("file", [])]
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "files")} <= flushed


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with file_written_whole(path) as aside:
        aside.write_text("first")
        assert not path.exists()
    for error, fault in ((FileNotFoundError, lambda aside: aside.unlink()), (ValueError, lambda aside: int("x"))):  # noqa: ARG005
        with pytest.raises(error), file_written_whole(path) as aside:  # noqa: PT012 – the block is what is tested
            aside.write_text("second")
            fault(aside)
        assert path.read_text() == "first"
    with file_size_limited_to(5), pytest.raises(OSError, match="too large"), file_written_whole(path) as aside:
        aside.write_text("second")
    assert path.read_text() == "first"
    with file_written_whole(path) as aside:
        aside.write_text("second")
    assert path.read_text() == "second"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
