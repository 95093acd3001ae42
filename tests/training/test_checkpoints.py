"""Damaged checkpoints, which of several is taken, and which are kept."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from host_helpers import recorded_steps, runner_config, tiny_config
from own_runs import begun, checkpoints_of, run_ours
from sae_lens.constants import RUNNER_CFG_FILENAME
from short_trainings import BATCH, assert_equal_states, batches, new_trainer, take_steps

from sae_lens_hsae.training import checkpoints
from sae_lens_hsae.training.checkpoints import MANIFEST, delete_older, newest_valid, verify
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

DAMAGED = {
    "flip": lambda content: bytes(byte ^ (i == len(content) // 2) for i, byte in enumerate(content)),
    "cut": lambda content: content[:-1],
    "empty": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),  # what a power cut leaves of unflushed files
}


def damage(path, how):
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(DAMAGED[how](path.read_bytes()))


@pytest.mark.parametrize("how", [*DAMAGED, "remove"])
def test_damage_to_any_file_of_a_checkpoint_is_found(tmp_path, how):
    trainer = new_trainer(HierarchicalSAETrainer)
    take_steps(trainer, batches(), 2)
    trainer.save_checkpoint("whole", base_path=tmp_path)
    assert verify(tmp_path / "whole").n_training_samples == 2 * BATCH
    names = [path.name for path in (tmp_path / "whole").iterdir()]
    assert {"sae_weights.safetensors", "trainer_state.pt", "cfg.json", MANIFEST} <= set(names)
    for name in names:
        if (name, how) in {(MANIFEST, "flip"), (MANIFEST, "cut")}:
            continue  # blanks may be lost from JSON and mean the same
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        damage(tmp_path / "damaged" / name, how)
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(name)):
            verify(tmp_path / "damaged")
        shutil.rmtree(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "describes no checkpoint"),
        ({"format_version": 1}, "format_version=1 cannot be read, only 2"),
        ({"n_training_samples": -1}, "is damaged"),
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
    _, checkpoint = begun(tmp_path)
    damage(checkpoint / "trainer_state.pt", "flip")
    with pytest.raises(ValueError, match=r"trainer_state\.pt' is not the file that was written"):
        run_ours(tmp_path, "again", resume_from_checkpoint=str(checkpoint))


def test_auto_takes_the_newest_whole_checkpoint_whatever_the_clock_says(tmp_path, monkeypatch, caplog):
    read, usual = [], checkpoints._verify_file
    monkeypatch.setattr(checkpoints, "_verify_file", lambda *args: usual(*args) or read.append(args[:2]))
    cfg, whole = run_ours(tmp_path, n_checkpoints=3)
    first, second, third = checkpoints_of(cfg)
    damage(third / "sae_weights.safetensors", "flip")
    os.utime(first, (4e9, 4e9))
    os.utime(second, (0, 0))
    with recorded_steps() as steps:
        again, resumed = run_ours(tmp_path, n_checkpoints=3, resume_from_checkpoint="auto")
    assert again.resume_from_checkpoint == str(second)
    assert len(read) == len(set(read)) >= len([*second.iterdir()]) - 1  # each file once
    assert len(steps) == (30 * 64 - int(second.name)) // 64
    assert_equal_states(resumed, whole)
    # It goes on in the same folder, where the damaged one is replaced.
    assert checkpoints_of(again) == [first, second, third]
    verify(third)
    assert "third" not in caplog.text
    assert f"checkpoint {str(third)!r} is passed over" in caplog.text


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
    assert f"{str(final)!r} is passed over: its run is finished; the model is trained" in caplog.text
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


def test_what_is_no_older_checkpoint_of_the_run_stays_and_does_not_count(tmp_path):
    """Another run's, one trained longer, and damaged ones, which end no training, stand in the run's folder."""
    cfg, _ = run_ours(tmp_path, n_checkpoints=5)
    one, two, three, four, longer = checkpoints_of(cfg)
    (one / MANIFEST).write_text("")
    config = json.loads((two / RUNNER_CFG_FILENAME).read_text())
    (two / RUNNER_CFG_FILENAME).write_text(json.dumps(config | {"lr": 1.0}))
    delete_older(four, keep=2)
    assert checkpoints_of(cfg) == [one, two, three, four, longer]
    delete_older(four, keep=1)
    assert checkpoints_of(cfg) == [one, two, four, longer]


@pytest.mark.parametrize("options", [{"keep_checkpoints": 0}, {"max_bad_batches": -1}, {"max_bad_batches": True}])
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}="):
        run_ours(tmp_path, options=options)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"level_widths": [8, 16, 64]}, r"W_dec has shape \(56, 16\) in the file, but level_widths=\[8, 16, 64\]"),
        ({"level_activation": "batchtopk"}, "resume with the configuration of the checkpoint"),
    ],
)
def test_a_resumed_run_is_refused_the_state_of_another(tmp_path, other, message):
    _, checkpoint = begun(tmp_path)
    with pytest.raises(ValueError, match=message):
        run_ours(tmp_path, "b", resume_from_checkpoint=str(checkpoint), sae=tiny_config(**other))
