"""The soak in small: that it sees what grows, and what does not. How fast is not asserted."""

import json
import os
import sys
import threading
import time

import torch
from host_helpers import runner_config, tiny_dataset, tiny_model

from benchmarks.soak import described, soak
from sae_lens_hsae import HierarchicalSAETrainingRunner
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

MINUTES = 0.03
N_CHECKPOINTS = 9


def tiny_training(folder, minutes, at_checkpoint=lambda: None):
    """Ten checkpoints with a pause after each, so that all are seen."""
    original = HierarchicalSAETrainer.save_checkpoint

    def save(self, checkpoint_name, base_path=None, wandb_aliases=None):
        original(self, checkpoint_name, base_path, wandb_aliases)
        at_checkpoint()
        time.sleep(60 * minutes / 12)

    HierarchicalSAETrainer.save_checkpoint = save
    torch.set_num_threads(1)
    cfg = runner_config(folder, n_checkpoints=N_CHECKPOINTS, save_final_checkpoint=True)
    HierarchicalSAETrainingRunner(
        cfg, override_model=tiny_model(), override_dataset=tiny_dataset(), keep_checkpoints=2
    ).run()


def leaking_training(folder, minutes):
    """As `tiny_training`; with every checkpoint 16 MiB, a handle and a thread are lost, and it ends with 3."""
    lost = []

    def leak():
        lost.append((os.urandom(2**24), os.open(os.devnull, os.O_RDONLY)))
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

    tiny_training(folder, minutes, leak)
    sys.exit(3)


def test_what_grows_is_seen(tmp_path):
    path = tmp_path / "new" / "soak.json"
    sound, code = soak(tiny_training, MINUTES, path)
    assert code == 0
    assert sound is not None
    record = json.loads(path.read_text())
    assert record["summary"] == sound
    assert record["exit_code"] == 0
    assert record["machine"]["torch"] == torch.__version__
    assert record["samples"][-1]["trained"] == 30 * 64
    assert 4 <= sound["checkpoints"] <= N_CHECKPOINTS + 1
    for name in ("handles", "threads"):  # one more if a file happens to be open when it is looked at
        assert sound[name]["last_window"] <= sound[name]["first_window"] + 1

    leaking, code = soak(leaking_training, MINUTES, path)
    assert code == json.loads(path.read_text())["exit_code"] == 3
    assert leaking is not None
    for name in ("handles", "threads"):
        assert leaking[name]["last_window"] > leaking[name]["first_window"]
    assert leaking["resident_mb"]["slope_per_hour"]["low"] > 0
    assert leaking["resident_mb"]["last_window"] - leaking["resident_mb"]["first_window"] > 16
    assert "resident memory" in described(leaking)
