"""Damaged, missing and half-written files, full disks, signals, and numbers that are not finite."""

import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import D_IN, make_sae
from host_helpers import recorded_steps, runner_config, tiny_config, tiny_dataset, tiny_model, train
from sae_lens import SAE
from safetensors import SafetensorError
from test_resume import BATCH, assert_equal_states, batches, new_trainer, take_steps

from sae_lens_hsae.storage.whole_files import (
    check_writable,
    file_written_whole,
    files_written_whole,
    folder_written_whole,
)
from sae_lens_hsae.training.bad_batches import BadBatchError
from sae_lens_hsae.training.checkpoints import MANIFEST, newest_valid, verify
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer


def run_ours(tmp_path, name="run", model=None, options=None, **overrides):
    """Train with our runner in ``tmp_path/name``; gives the configuration and the SAE."""
    cfg = runner_config(tmp_path / name, **overrides)
    torch.manual_seed(1)
    runner = HierarchicalSAETrainingRunner(
        cfg, override_model=model or tiny_model(), override_dataset=tiny_dataset(), **(options or {})
    )
    return cfg, runner.run()


def checkpoints_of(cfg):
    folder = Path(str(cfg.checkpoint_path))
    return sorted(
        (path for path in folder.iterdir()), key=lambda path: (path.name.startswith("final"), len(path.name), path.name)
    )


def damage(path, how):
    if how == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "zeros":  # the length is there and the content never was: what a power cut leaves of unflushed files
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()


# Manifests.


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "zeros", "remove"])
def test_damage_to_any_file_of_a_checkpoint_is_found(tmp_path, how):
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 2)
    trainer.save_checkpoint("whole", base_path=tmp_path)
    assert verify(tmp_path / "whole").n_training_samples == 2 * BATCH
    names = [path.name for path in (tmp_path / "whole").iterdir()]
    assert {"sae_weights.safetensors", "trainer_state.pt", "cfg.json", MANIFEST} <= set(names)
    for name in names:
        if (name, how) in {(MANIFEST, "flip"), (MANIFEST, "cut")}:
            continue  # blanks may be lost from JSON and mean the same; whole manifests are fuzzed elsewhere
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        damage(tmp_path / "damaged" / name, how)
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(name)):
            verify(tmp_path / "damaged")
        shutil.rmtree(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "describes no checkpoint"),
        ({"format_version": 2}, "format_version=2 cannot be read, only 1"),
        ({"n_training_samples": -1}, "is damaged"),
        ({"finished": 0}, "is damaged"),
        ({"files": {}}, "is damaged"),
        ({"files": {"../../elsewhere": {"bytes": 1, "sha256": ""}}}, "is damaged"),
        ({"files": {"cfg.json": "hash"}}, "is damaged"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(tmp_path, change, message):
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.save_checkpoint("0", base_path=tmp_path)
    path = tmp_path / "0" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        verify(tmp_path / "0")


def test_a_damaged_checkpoint_is_refused_before_training(tmp_path):
    cfg, _ = run_ours(tmp_path, n_checkpoints=1)
    (checkpoint,) = checkpoints_of(cfg)
    damage(checkpoint / "trainer_state.pt", "flip")
    with pytest.raises(ValueError, match=r"trainer_state\.pt' is not the file that was written"):
        run_ours(tmp_path, "again", resume_from_checkpoint=str(checkpoint))


# Which checkpoint is taken, and which are kept.


def test_auto_takes_the_newest_whole_checkpoint_whatever_the_clock_says(tmp_path, caplog):
    cfg, whole = run_ours(tmp_path, n_checkpoints=3)
    first, second, third = checkpoints_of(cfg)
    damage(third / "sae_weights.safetensors", "flip")
    os.utime(first, (4e9, 4e9))
    os.utime(second, (0, 0))
    with recorded_steps() as steps:
        again, resumed = run_ours(tmp_path, n_checkpoints=3, resume_from_checkpoint="auto")
    assert again.resume_from_checkpoint == str(second)
    assert len(steps) == (30 * 64 - int(second.name)) // 64
    assert_equal_states(resumed, whole)
    # It goes on in the same folder, where the damaged one is replaced.
    assert checkpoints_of(again) == [first, second, third]
    verify(third)
    assert "third" not in caplog.text
    assert f"checkpoint {str(third)!r} is passed over" in caplog.text


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    options = {"n_checkpoints": 5, "options": {"keep_checkpoints": 2}}
    undisturbed, whole = run_ours(tmp_path, **options)
    jumps = itertools.count(4e9, -1e6)  # far ahead, and with every look at it twelve days back
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    original = HierarchicalSAETrainer.save_checkpoint

    def save(trainer, checkpoint_name, *args, **kwargs):
        original(trainer, checkpoint_name, *args, **kwargs)
        for path in Path(str(trainer.cfg.checkpoint_path)).rglob("*"):
            os.utime(path, (at := next(jumps), at))

    monkeypatch.setattr(HierarchicalSAETrainer, "save_checkpoint", save)
    cfg, disturbed = run_ours(tmp_path, "jumps", **options)
    assert_equal_states(disturbed, whole)
    assert [path.name for path in checkpoints_of(cfg)] == [path.name for path in checkpoints_of(undisturbed)]
    again, resumed = run_ours(tmp_path, "jumps", resume_from_checkpoint="auto", **options)
    assert again.resume_from_checkpoint == str(checkpoints_of(cfg)[-1])
    assert_equal_states(resumed, whole)


def test_auto_begins_where_there_is_nothing_to_resume(tmp_path, caplog):
    cfg, _ = run_ours(tmp_path, resume_from_checkpoint="auto", n_checkpoints=1)
    assert "training begins" in caplog.text
    assert len(checkpoints_of(cfg)) == 1
    with pytest.raises(ValueError, match="resume_from_checkpoint='auto' needs a checkpoint_path"):
        run_ours(tmp_path, resume_from_checkpoint="auto", checkpoint_path=None)


def test_auto_passes_over_other_runs_and_finished_ones(tmp_path, caplog):
    cfg, _ = run_ours(tmp_path, n_checkpoints=1, save_final_checkpoint=True)
    checkpoint, final = checkpoints_of(cfg)
    assert verify(final).finished
    root = Path(str(cfg.checkpoint_path)).parent
    same = runner_config(tmp_path / "run", sae=tiny_config(), device="cpu", verbose=True)
    assert newest_valid(root, same.to_dict()) == checkpoint
    other = runner_config(tmp_path / "run", lr=1e-3, sae=tiny_config(target_l0=4))
    assert newest_valid(root, other.to_dict()) is None
    assert "its run has another lr, lr_end, sae.target_l0" in caplog.text
    with pytest.raises(ValueError, match="is of a finished run"):
        run_ours(tmp_path, "again", resume_from_checkpoint=str(final))


def test_as_many_checkpoints_stay_as_are_to_be_kept(tmp_path):
    cfg, _ = run_ours(tmp_path, n_checkpoints=5, save_final_checkpoint=True, options={"keep_checkpoints": 2})
    all_of_them, _ = run_ours(tmp_path, "all", n_checkpoints=5, save_final_checkpoint=True)
    names = [path.name for path in checkpoints_of(all_of_them)]
    assert len(names) == 6
    assert [path.name for path in checkpoints_of(cfg)] == names[-3:]
    for checkpoint in checkpoints_of(cfg):
        verify(checkpoint)


@pytest.mark.parametrize("options", [{"keep_checkpoints": 0}, {"max_bad_batches": -1}, {"max_bad_batches": True}])
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        run_ours(tmp_path, options=options)


# Signals, in processes of their own, because of their exit codes. One interpreter forks them all.

SIGNALS = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_faults import run_ours
from host_helpers import tiny_model

def send(at, *numbers):
    left = [at]
    def hook(tensor, hook):
        left[0] -= 1
        if left[0] == 0:
            for number in numbers:
                os.kill(os.getpid(), number)
        return tensor
    return hook

TERM, INT = signal.SIGTERM, signal.SIGINT
for name, at, numbers in [("term", 11, [TERM]), ("int", 11, [INT]), ("twice", 11, [TERM, INT]), ("early", 1, [TERM])]:
    pid = os.fork()
    if not pid:
        signal.signal(INT, signal.default_int_handler)
        model = tiny_model()
        model.hook_dict["blocks.0.hook_resid_post"].add_perma_hook(send(at, *numbers))
        run_ours(Path(sys.argv[2]), name, model=model)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    checkpoints = list((Path(sys.argv[2]) / name).glob("checkpoints/*/[!.]*/manifest.json"))
    print("CASE", name, code, len(checkpoints), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the script forks")
def test_signals_end_a_run_with_the_conventional_code(tmp_path):
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, here, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    cases = {name: rest for name, *rest in (line.split()[1:] for line in done.stdout.splitlines() if "CASE" in line)}
    assert cases == {
        "term": ["143", "1"],
        "int": ["130", "1"],
        "twice": ["-2", "0"],  # killed by the second at once, so nothing more is written
        "early": ["143", "0"],  # before the first step there is nothing to save
    }, done.stderr
    assert "Traceback" not in done.stderr


# Disks and folders.


@contextmanager
def file_size_limited_to(n_bytes):
    """A disk that takes no more: the kernel refuses to let any file grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_checkpoint_untouched(tmp_path):
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 2)
    trainer.save_checkpoint("64", base_path=tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "64").iterdir()}
    sizes = sorted({len(content) for content in before.values()})
    for limit in (0, *(size - 1 for size in sizes)):
        for name in ("64", "128"):
            with (
                file_size_limited_to(limit),
                pytest.raises(OSError, match=rf"the checkpoint .*{name}' could not be written .* Make room"),
            ):
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
        ("checkpoint_path", {"n_checkpoints": 0, "save_final_checkpoint": True}),
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


# Numbers that are not finite.


def with_bad_batches(bad, at):
    for i, batch in enumerate(batches()):
        if i in at:
            yield bad(batch.clone())
        yield batch


def poisoned(value):
    def bad(batch):
        batch[3, 2] = value
        return batch

    return bad


def huge(batch):
    return batch * 1e20  # finite, and its square is not


BAD = [poisoned(torch.nan), poisoned(torch.inf), huge, torch.zeros_like]


@pytest.mark.parametrize("bad", BAD)
def test_skipped_batches_change_nothing(bad, caplog):
    undisturbed = new_trainer(HierarchicalSAETrainer)
    expected = take_steps(undisturbed, batches(), 12)
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.max_bad_batches = 3
    trainer.data_provider = data = with_bad_batches(bad, {0, 3, 7})
    losses = take_steps(trainer, data, 12)
    if bad is huge:  # found after the decoder rows are brought to unit norm, which rounds anew each time
        assert losses == pytest.approx(expected, rel=1e-5)
    else:
        assert losses == expected
        assert_equal_states(trainer.sae, undisturbed.sae)
    assert trainer.n_bad_batches == 3
    assert trainer.n_training_samples == undisturbed.n_training_samples
    assert caplog.text.count("skipped bad batch") == 3


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_batch_too_many_ends_training(bad):
    trainer = new_trainer(HierarchicalSAETrainer)
    with pytest.raises(BadBatchError, match=r"training step 4 (are|overflows)"):
        take_steps(trainer, with_bad_batches(bad, {4}), 9)
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.max_bad_batches = 1
    trainer.data_provider = data = with_bad_batches(bad, {4, 6})
    with pytest.raises(BadBatchError, match=r"training step 6 .*max_bad_batches=1 batches were skipped"):
        take_steps(trainer, data, 9)


def test_the_step_the_level_and_the_cause_are_named():
    sae = make_sae()
    trainer = HierarchicalSAETrainer(cfg=new_trainer(HierarchicalSAETrainer).cfg, sae=sae, data_provider=batches())
    batch = next(batches())
    with pytest.raises(BadBatchError, match=r"of 32 tokens, 1 have NaN and 0 infinite"):
        trainer.step(poisoned(torch.nan)(batch.clone()))
    with pytest.raises(BadBatchError, match=r"mse_loss.* of training step 0 overflows at level 0, 1, 2"):
        trainer.step(huge(batch))
    take_steps(trainer, batches(), 2)
    own = sae.levels[1]
    for name, at in (("W_enc", (0, own.start)), ("W_dec", (own.start, 0)), ("b_dec", (1, 0)), ("b_enc", (own.start,))):
        broken = make_sae()
        trainer = HierarchicalSAETrainer(cfg=trainer.cfg, sae=broken, data_provider=batches())
        take_steps(trainer, batches(), 2)
        getattr(broken, name).data[at] = torch.nan
        with pytest.raises(ValueError, match=rf"diverged: before training step 2, {name} is NaN .* at level 1;"):
            trainer.step(batch)


def test_what_has_diverged_is_not_saved(tmp_path):
    trainer = new_trainer(HierarchicalSAETrainer)
    trainer.max_bad_batches = 100
    take_steps(trainer, batches(), 1)
    trainer.save_checkpoint("good", base_path=tmp_path)
    trainer.sae.b_enc.data[0] = torch.inf
    with pytest.raises(ValueError, match="training has diverged: after training step 1, b_enc"):
        trainer.save_checkpoint("bad", base_path=tmp_path)
    with pytest.raises(ValueError, match="training has diverged"):
        trainer.set_final_sae_metadata()
    with pytest.raises(ValueError, match="training has diverged: before"):
        trainer.step(next(batches()))
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_bad_batch_in_the_estimate_of_the_scale_can_be_skipped(tmp_path):
    model = tiny_model()
    calls = [0]

    def poison(tensor, hook):  # noqa: ARG001 – TransformerLens passes it by name
        calls[0] += 1
        return torch.full_like(tensor, torch.inf) if calls[0] == 1 else tensor

    model.hook_dict["blocks.0.hook_resid_post"].add_perma_hook(poison)
    _, sae = run_ours(tmp_path, model=model, options={"max_bad_batches": 20})
    assert all(parameter.isfinite().all() for parameter in sae.parameters())
    assert sae.cfg.normalize_activations == "none"


def test_a_resumed_run_is_refused_the_state_of_another(tmp_path):
    cfg, _ = run_ours(tmp_path, n_checkpoints=1)
    (checkpoint,) = checkpoints_of(cfg)
    with pytest.raises(ValueError, match="the trainer state does not fit this run"):
        train(
            HierarchicalSAETrainingRunner,
            runner_config(
                tmp_path / "b", resume_from_checkpoint=str(checkpoint), sae=tiny_config(level_widths=[8, 16, 64])
            ),
        )
