"""Several processes train one SAE as one process would; real processes over gloo."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from host_helpers import recorded_steps, runner_config, tiny_config, tiny_dataset, tiny_model, train
from ranks import FORK, on_ranks

from sae_lens_hsae.training.data_parallel import DataParallelTrainer
from sae_lens_hsae.training.resumable_store import ResumableActivationsStore
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner, Interrupted
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

pytestmark = pytest.mark.skipif(FORK is None, reason="the processes are forked")


class Watched:
    """What one process of a run did: its steps, its trainer's counts, and the text it read."""

    def __init__(self):
        self.report: dict[str, Any] = {"sequences": []}

    def run(self, tmp_path, model=None, *, runner: dict[str, Any] | None = None, **overrides):
        cfg = runner_config(tmp_path, **overrides)
        take, end = ResumableActivationsStore.get_batch_tokens, HierarchicalSAETrainer.set_final_sae_metadata
        report = self.report

        def get_batch_tokens(store, *args, **kwargs):
            tokens = take(store, *args, **kwargs)
            report["sequences"] += [tuple(row.tolist()) for row in tokens]
            return tokens

        def set_final_sae_metadata(trainer):
            end(trainer)
            names = ("n_training_samples", "act_freq_scores", "n_forward_passes_since_fired", "n_frac_active_samples")
            report.update({name: getattr(trainer, name) for name in names})

        ResumableActivationsStore.get_batch_tokens = get_batch_tokens
        HierarchicalSAETrainer.set_final_sae_metadata = set_final_sae_metadata
        try:
            with recorded_steps() as steps:
                model = {"override_model": model or tiny_model(), "override_dataset": tiny_dataset(600)}
                sae = train(HierarchicalSAETrainingRunner, cfg, **model, **(runner or {}))
        finally:
            ResumableActivationsStore.get_batch_tokens = take
            HierarchicalSAETrainer.set_final_sae_metadata = end
        return {**report, "steps": steps, "state": sae.state_dict(), "checkpoint_path": cfg.checkpoint_path}


def watched_run(tmp_path, **overrides):
    return Watched().run(tmp_path, **overrides)


def sae_with(similarity):
    return tiny_config(hierarchy_similarity=similarity, dtype="float64")


@pytest.mark.parametrize(
    ("n_ranks", "similarity"),
    [(2, "encoder"), (2, "conditional"), pytest.param(4, "encoder", marks=pytest.mark.slow)],
)
def test_several_processes_take_the_steps_of_one(tmp_path, n_ranks, similarity):
    # In order and row by row, so that the parts of each batch are together the batch of the one process.
    settings = {
        "activations_mixing_fraction": 0.0,
        "store_batch_size_prompts": 4,
        "train_batch_size_tokens": 128,
        "training_tokens": 30 * 128,
        "dead_feature_window": 2,
        "feature_sampling_window": 13,
        "dtype": "float64",
    }
    one = watched_run(tmp_path / "one", sae=sae_with(similarity), **settings)
    ranks = on_ranks(
        n_ranks, tmp_path, lambda _: watched_run(tmp_path / "several", sae=sae_with(similarity), **settings)
    )
    assert all(isinstance(result, dict) for result in ranks), ranks
    close = {"rtol": 1e-4, "atol": 1e-7}  # λ and θ are float32
    for i, step in enumerate(one["steps"]):
        parts = [rank["steps"][i] for rank in ranks]
        for name, loss in step.losses.items():
            assert sum(part.losses[name] for part in parts) / n_ranks == pytest.approx(loss, rel=1e-6), (i, name)
        for part in parts:
            assert torch.equal(part.parents, step.parents), i
            torch.testing.assert_close(part.coefficients, step.coefficients, rtol=1e-5, atol=0)
            assert part.scale == pytest.approx(step.scale)
    assert any(step.losses["ghost_gradient_loss"] > 0 for step in one["steps"])
    assert (one["steps"][-1].parents >= 0).any()
    for rank in ranks:
        assert rank["n_training_samples"] == one["n_training_samples"] == 30 * 128
        assert rank["n_frac_active_samples"] == one["n_frac_active_samples"]
        assert torch.equal(rank["act_freq_scores"], one["act_freq_scores"])
        assert torch.equal(rank["n_forward_passes_since_fired"], one["n_forward_passes_since_fired"])
        for name, tensor in rank["state"].items():
            assert torch.equal(tensor, ranks[0]["state"][name]), name
            torch.testing.assert_close(tensor, one["state"][name], **close)
