"""Several processes train one SAE as one process would; real processes over gloo."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from host_helpers import (
    hooked_model,
    recorded_steps,
    runner_config,
    signalling,
    tiny_config,
    tiny_dataset,
    tiny_model,
    train,
)
from ranks import FORK, SECONDS, on_ranks
from sae_lens import LoggingConfig
from wandb_runs import history

from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.sae.inference import own_name
from sae_lens_hsae.sae.recent_firing import STATE
from sae_lens_hsae.training.checkpoints import verify
from sae_lens_hsae.training.distributed.ranks import own_device
from sae_lens_hsae.training.distributed.shards import check_rows, dealt, first_row, shard_of
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner, Interrupted
from sae_lens_hsae.training.store import ResumableActivationsStore
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

pytestmark = pytest.mark.skipif(FORK is None, reason="the processes are forked")


N_ROWS = 600


def watched_run(tmp_path, model=None, options=None, **overrides):
    """Train with our runner; gives its steps, its trainer's counts, and the text it read, also if it is stopped."""
    cfg = runner_config(tmp_path, **overrides)
    report: dict[str, Any] = {"sequences": [], "stopped": False}
    take, end = ResumableActivationsStore.get_batch_tokens, HierarchicalSAETrainer.set_final_sae_metadata

    def get_batch_tokens(store, *args, **kwargs):
        tokens = take(store, *args, **kwargs)
        report["sequences"] += [tuple(row.tolist()) for row in tokens]
        return tokens

    def set_final_sae_metadata(trainer):
        end(trainer)
        names = ("n_training_samples", "act_freq_scores", "n_forward_passes_since_fired", "n_frac_active_samples")
        report.update({name: getattr(trainer, name) for name in names})

    overrides = {"override_model": model or tiny_model(), "override_dataset": tiny_dataset(N_ROWS), **(options or {})}
    with pytest.MonkeyPatch.context() as patch, recorded_steps() as steps:
        patch.setattr(ResumableActivationsStore, "get_batch_tokens", get_batch_tokens)
        patch.setattr(HierarchicalSAETrainer, "set_final_sae_metadata", set_final_sae_metadata)
        try:
            report["state"] = train(HierarchicalSAETrainingRunner, cfg, **overrides).state_dict()
        except Interrupted as stopped:
            report["stopped"] = stopped.code
    return {**report, "steps": steps, "checkpoint_path": cfg.checkpoint_path}


def assert_all_ended(results):
    assert all(isinstance(result, dict) for result in results), results
    for result in results[1:]:
        for name, tensor in result.get("state", {}).items():
            assert torch.equal(tensor, results[0]["state"][name]), name


def sae_with(similarity):
    # The threshold has some features dead at first. The auxiliary loss is another one for each part of a batch.
    weighted = {"outlier_limit": 3.0, "dead_feature_loss": "ghost", "jumprelu_init_threshold": 2.5}
    more = weighted if similarity == "conditional" else {}
    return tiny_config(hierarchy_similarity=similarity, dtype="float64", **more)


def model_with_sinks():
    """The tiny model with one far outlying token in every context, so as many in each part of a batch."""
    return hooked_model(lambda x: torch.cat([1000 * x[:, :1], x[:, 1:]], dim=1))


@pytest.mark.parametrize(
    ("n_ranks", "similarity"), [(2, "encoder"), (2, "conditional"), pytest.param(4, "encoder", marks=pytest.mark.slow)]
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
    model = model_with_sinks if similarity == "conditional" else tiny_model
    one = watched_run(tmp_path / "one", model(), sae=sae_with(similarity), **settings)
    ranks = on_ranks(
        n_ranks, tmp_path, lambda _: watched_run(tmp_path / "several", model(), sae=sae_with(similarity), **settings)
    )
    assert_all_ended(ranks)
    for i, step in enumerate(one["steps"]):
        parts = [rank["steps"][i] for rank in ranks]
        for name, loss in step.losses.items():
            assert sum(part.losses[name] for part in parts) / n_ranks == pytest.approx(loss, rel=1e-6), (i, name)
        for part in parts:
            assert torch.equal(part.parents, step.parents), i
            torch.testing.assert_close(part.coefficients, step.coefficients, rtol=1e-5, atol=0)
            assert part.scale == pytest.approx(step.scale)
    assert any(step.losses.get("ghost_gradient_loss", 0) > 0 for step in one["steps"])
    assert (one["steps"][-1].parents >= 0).any()
    for rank in ranks:
        assert rank["n_training_samples"] == one["n_training_samples"] == 30 * 128
        assert rank["n_frac_active_samples"] == one["n_frac_active_samples"]
        assert torch.equal(rank["act_freq_scores"], one["act_freq_scores"])
        assert torch.equal(rank["n_forward_passes_since_fired"], one["n_forward_passes_since_fired"])
        for name, tensor in rank["state"].items():
            if own_name(name) not in STATE:
                # λ and θ are float32.
                torch.testing.assert_close(tensor, one["state"][name], rtol=1e-4, atol=1e-7)
        # Of the same tokens, each process's part of a batch by itself.
        for name in ("forest_updater.recent.firing_sizes", "forest_updater.recent.firing_times"):
            assert (name in rank["state"]) == (similarity == "conditional")
            if name in rank["state"]:
                assert torch.equal(rank["state"][name].sum(0), one["state"][name].sum(0))


def test_all_stop_together_and_any_number_of_ranks_goes_on_without_reading_text_twice(tmp_path):
    settings = {
        "train_batch_size_tokens": 96,
        "training_tokens": 60 * 96,
        "n_batches_in_buffer": 8,
        "dtype": "float64",
        "sae": sae_with("encoder"),
    }

    def stopped(rank):
        # One rank alone is told to stop, while the others are anywhere in their step.
        model = hooked_model(signalling(signal.SIGTERM), at=12) if rank == 1 else None
        return watched_run(tmp_path / "stopped", model, **settings)

    before = on_ranks(3, tmp_path / "a", stopped)
    assert_all_ended(before)
    assert [rank["stopped"] for rank in before] == [143] * 3
    assert len(before[0]["steps"]) == len(before[1]["steps"]) == len(before[2]["steps"]) > 10
    (checkpoint,) = Path(before[0]["checkpoint_path"]).iterdir()
    assert int(checkpoint.name) == 96 * len(before[0]["steps"])
    assert before[1]["checkpoint_path"] == before[0]["checkpoint_path"]
    assert verify(checkpoint).n_training_samples == int(checkpoint.name)

    undisturbed = on_ranks(3, tmp_path / "b", lambda _: watched_run(tmp_path / "whole", **settings))
    for n_ranks in (3, 2, 1):
        again = {**settings, "resume_from_checkpoint": str(checkpoint)}
        folder = tmp_path / f"resumed-by-{n_ranks}"
        if n_ranks == 1:
            after = [watched_run(folder, **again)]
        else:
            after = on_ranks(n_ranks, folder, lambda _, folder=folder, again=again: watched_run(folder, **again))
        assert_all_ended(after)
        assert all(rank["n_training_samples"] == 60 * 96 for rank in after)
        read = [row for run in (before, after) for rank in run for row in rank["sequences"]]
        assert len(set(read)) == len(read), n_ranks
        assert len(read) < N_ROWS  # else they would be read twice by right
        if n_ranks == 3:
            # Not to the bit: torch adds up the first gradients after a start in another order. With two there is one.
            for name, tensor in after[0]["state"].items():
                torch.testing.assert_close(tensor, undisturbed[0]["state"][name], rtol=1e-4, atol=1e-7)


def test_processes_stay_alike_with_the_default_loss_of_silent_features(tmp_path):
    sae = tiny_config(outlier_limit=3.0, dead_feature_loss="auxiliary", jumprelu_init_threshold=2.5)
    ranks = on_ranks(2, tmp_path, lambda _: watched_run(tmp_path / "several", sae=sae, training_tokens=30 * 128))
    assert_all_ended(ranks)
    assert any(step.losses.get("auxiliary_loss", 0) > 0 for step in ranks[1]["steps"])


def test_a_bad_batch_of_one_rank_is_skipped_by_all_or_ends_all(tmp_path):
    def poison(tensor):
        return tensor * float("nan")

    def run(rank, max_bad_batches):
        model = hooked_model(poison, at=9) if rank == 1 else None
        settings = {"activations_mixing_fraction": 0.0, "n_batches_in_buffer": 2, "train_batch_size_tokens": 128}
        folder = tmp_path / f"{max_bad_batches}"
        return watched_run(folder, model, {"max_bad_batches": max_bad_batches}, training_tokens=30 * 128, **settings)

    skipping = on_ranks(2, tmp_path / "a", lambda rank: run(rank, 2))
    assert_all_ended(skipping)
    assert [len(rank["steps"]) for rank in skipping] == [30, 30]
    one, other = on_ranks(2, tmp_path / "b", lambda rank: run(rank, 0))
    assert isinstance(one, ValueError)
    assert isinstance(other, ValueError)
    assert "a part of this batch is bad, that of rank 1, which says why" in str(one)
    assert "activations of training step" in str(other)
    [manifest] = tmp_path.glob("0/checkpoints/*/*/manifest.json")
    verify(manifest.parent)


def test_a_rank_that_hangs_is_named_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lens_hsae.training.distributed.ranks.ROLL_CALL_SECONDS", 3)

    def hang(tensor):
        time.sleep(SECONDS)
        return tensor

    def run(rank):
        model = hooked_model(hang, at=5) if rank == 1 else None
        return watched_run(tmp_path, model, {"rank_timeout": 2}, train_batch_size_tokens=96)

    one, hanging, third = on_ranks(3, tmp_path / "a", run, hanging=1)
    assert hanging is None
    assert isinstance(third, RuntimeError)
    assert isinstance(one, RuntimeError)
    assert "rank 0 waited for the others in vain, up to 2 s" in str(one)
    assert "Ranks 1 failed to pass monitoredBarrier" in str(one)


def test_one_rank_logs_the_mean_over_all(tmp_path, offline):
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=5)

    def run(_):
        return watched_run(tmp_path / "run", logger=logger, train_batch_size_tokens=64)

    ranks = on_ranks(2, tmp_path / "a", run)
    assert_all_ended(ranks)
    rows = history(offline)  # of the only run
    for number in (4, 29):
        mean = sum(rank["steps"][number].loss for rank in ranks) / 2
        assert rows[number]["losses/overall_loss"] == pytest.approx(mean, rel=1e-5)
        assert rows[number]["details/n_training_samples"] == 64 * (number + 1)
    assert ranks[0]["steps"][4].loss != ranks[1]["steps"][4].loss


def test_rows_go_round_and_what_waits_is_dealt_out():
    rows = tiny_dataset(10)
    shards = [shard_of(rows, rank, 3)["tokens"] for rank in range(3)]
    assert [len(shard) for shard in shards] == [4, 3, 3]
    assert shards[1] == rows[1:10:3]["tokens"]
    assert shard_of(rows, 0, 1) is rows
    streamed = rows.to_iterable_dataset()
    assert [row["tokens"] for row in shard_of(streamed, 2, 3)] == shards[2]
    # Of two ranks one has read 5 rows and the other 6: up to 12 rows of the data set, so 4 of each of three ranks.
    assert first_row([(1, 5), (1, 6)], 3) == (1, 4)
    assert first_row([(1, 90), (2, 1)], 4) == (2, 1)
    waiting = [torch.arange(7)[:, None], torch.arange(7, 12)[:, None]]
    shares = [dealt(waiting, rank, 3) for rank in range(3)]
    assert sorted(torch.cat([share for share in shares if share is not None]).flatten().tolist()) == list(range(12))
    assert [share is not None and len(share) for share in shares] == [4, 4, 4]


def test_features_that_never_fire_keep_nobody_waiting(tmp_path):
    sae = tiny_config(jumprelu_init_threshold=1e4, dead_feature_loss="none")
    assert_all_ended(on_ranks(2, tmp_path, lambda _: watched_run(tmp_path / "run", sae=sae)))


def test_text_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="has 2 rows, fewer than the 3 ranks; start fewer"):
        shard_of(tiny_dataset(2), 0, 3)
    with pytest.raises(ValueError, match="DatasetDict cannot be divided among 3 ranks; give one split"):
        shard_of(DatasetDict({"train": tiny_dataset(9)}), 0, 3)
    with pytest.raises(ValueError, match="9 rows, but 3 ranks with store_batch_size_prompts=4 need 12"):
        check_rows(9, 3, 4)


def test_what_cannot_be_divided_is_refused_before_anybody_waits(tmp_path, monkeypatch, capsys):
    for name, value in (("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3"), ("LOCAL_RANK", "1"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"train_batch_size_tokens=64, the batch of all 3 ranks .* multiple of 3"):
        HierarchicalSAETrainingRunner(runner_config(tmp_path))
    with pytest.raises(ValueError, match="rank_timeout=0 must be a number of seconds above 0"):
        HierarchicalSAETrainingRunner(runner_config(tmp_path, train_batch_size_tokens=96), rank_timeout=0)
    with pytest.raises(ValueError, match=r"device='cuda:1': .* each takes the GPU of its number"):
        own_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"3 processes .* has 2 GPUs; .* torchrun --nproc-per-node 2"):
        own_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert (own_device("cuda"), own_device("cpu")) == ("cuda:1", "cpu")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path)])
    assert "hsae evaluate: this is for one process, but 3 were started" in capsys.readouterr().err
