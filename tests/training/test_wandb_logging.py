"""What SAELens' runner logs to Weights & Biases, read back from the file of a real offline run."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from host_helpers import (
    CONTEXT,
    WIDTHS,
    hooked_model,
    recorded_steps,
    residual_activations,
    runner_config,
    signalling,
    train,
)
from own_runs import run_ours
from sae_lens import SAE, LanguageModelSAETrainingRunner, LoggingConfig
from short_trainings import poisoned
from wandb.errors import CommError
from wandb_runs import history, records

from sae_lens_hsae import ForestLogging, HierarchicalSAETrainingRunner, evaluate_forest
from sae_lens_hsae.interpret.feature_cache import Dashboards, fingerprint
from sae_lens_hsae.sae.bad_batches import BadBatchError
from sae_lens_hsae.training.forest_log import COLUMNS
from sae_lens_hsae.training.runner import Interrupted

LOG_EVERY = 5
EVERY_LEVEL = ("l0", "l0_coefficient", "mse", "explained_variance", "dead_features")


@pytest.mark.parametrize("runner", [LanguageModelSAETrainingRunner, HierarchicalSAETrainingRunner])
def test_levels_and_forest_are_logged(tmp_path, offline, runner):
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=LOG_EVERY, eval_every_n_wandb_logs=2)
    with recorded_steps() as steps:
        sae = train(runner, runner_config(tmp_path, logger=logger, n_eval_batches=1))
    wandb.teardown()  # ends the process that writes the file; before that its last record may be missing
    rows = history(offline)
    assert not any(name.startswith("forest/") for row in rows.values() for name in row), "nobody asked for it"
    logged = {step: row for step, row in rows.items() if "losses/overall_loss" in row}
    assert list(logged) == list(range(LOG_EVERY - 1, 30, LOG_EVERY))
    for step, row in logged.items():
        recorded = steps[step]
        assert row["losses/overall_loss"] == pytest.approx(recorded.loss)
        assert row["losses/structural_loss"] == pytest.approx(recorded.losses["structural_loss"])
        assert 0 <= row["metrics/reparented_share"] <= 1
        for level, (width, own) in enumerate(zip(WIDTHS, sae.levels, strict=True)):
            values = {name: row[f"metrics/level_{level}_{name}"] for name in EVERY_LEVEL}
            assert 0 < values["l0"] <= width
            assert values["l0_coefficient"] > 0
            assert 0 < values["mse"] < recorded.loss
            assert values["explained_variance"] < 1
            assert values["dead_features"] in range(width + 1)
            if level > 0:
                unassigned = (recorded.parents[own] < 0).float().mean().item()
                assert row[f"metrics/level_{level}_unassigned_share"] == pytest.approx(unassigned)
            else:
                assert "metrics/level_0_unassigned_share" not in row
    # λ is steered, the first forest comes at step 3, and the next update at step 10 changes some parents.
    lambdas = [row["metrics/level_2_l0_coefficient"] for row in logged.values()]
    assert len(set(lambdas)) == len(lambdas)
    assert logged[LOG_EVERY - 1]["metrics/reparented_share"] > 0
    # SAELens' own evaluation, every second time, runs on the architecture as well.
    evaluated = {step: row for step, row in rows.items() if "model_performance_preservation" in str(row)}
    assert list(evaluated) == list(range(2 * LOG_EVERY - 1, 30, 2 * LOG_EVERY))
    for row in evaluated.values():
        for name in ("threshold", "b_enc"):
            assert sum(row[f"weights/{name}/values"]) == sae.cfg.d_sae
            assert len(row[f"weights/{name}/bins"]) == len(row[f"weights/{name}/values"]) + 1


def test_the_config_says_what_a_run_was_resumed_from(tmp_path, offline):
    run(tmp_path / "first", n_checkpoints=1, logger=LoggingConfig(log_to_wandb=False))
    [checkpoint] = tmp_path.glob("first/checkpoints/*/*")
    run(tmp_path / "again", resume_from_checkpoint=str(checkpoint))
    wandb.teardown()
    [path] = offline.glob("wandb/offline-run-*/run-*.wandb")
    told = [item for record in records(path) for item in record.config.update if item.key == "resume_from_checkpoint"]
    assert json.loads(told[-1].value_json) == str(checkpoint)


@pytest.mark.parametrize("fault", [signalling(signal.SIGTERM), poisoned(torch.nan)])
def test_a_run_that_fails_leaves_none_open_for_the_next_one(tmp_path, offline, fault):
    with pytest.raises((Interrupted, BadBatchError)):
        run(tmp_path / "stopped", model=hooked_model(fault, at=11))
    assert wandb.run is None
    run(tmp_path / "next")
    wandb.teardown()
    codes = sorted(
        record.exit.exit_code
        for path in offline.glob("wandb/offline-run-*/run-*.wandb")
        for record in records(path)
        if record.WhichOneof("record_type") == "exit"
    )
    assert codes == [0, 1]


@pytest.mark.usefixtures("offline")
def test_a_run_of_the_callers_stays_open_after_an_error(tmp_path):
    mine = wandb.init(project="mine")
    with pytest.raises(BadBatchError):
        run(tmp_path, model=hooked_model(poisoned(torch.nan), at=11))
    assert wandb.run is mine


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), CommError("refused")])
@pytest.mark.parametrize("checkpoint_path", ["checkpoints", None])
@pytest.mark.usefixtures("offline")
def test_what_wandb_does_not_take_is_not_lost(tmp_path, monkeypatch, caplog, error, checkpoint_path):
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(wandb.Artifact, "add_file", refuse)
    where = None if checkpoint_path is None else str(tmp_path / checkpoint_path)
    sae, _ = run(tmp_path, n_checkpoints=1, checkpoint_path=where)
    assert len(list(tmp_path.glob("checkpoints/*/*/manifest.json"))) == (where is not None)
    loaded: Any = SAE.load_from_disk(tmp_path / "out")
    assert torch.equal(loaded.parents, sae.parents)
    assert caplog.text.count("W&B has not taken the files that were saved; the run goes on") == 2


@pytest.mark.usefixtures("offline")
def test_wandb_gets_the_files_from_the_place_where_they_stay(tmp_path, monkeypatch):
    given: list[Path] = []
    monkeypatch.setattr(wandb.Artifact, "add_file", lambda _, path, **__: given.append(Path(path)))
    run(tmp_path, n_checkpoints=1)
    assert len(given) == 2 * 3
    assert all(path.is_file() for path in given)


TREES = ForestLogging(trees=True, explorer=True, n_tokens=400)


@pytest.mark.usefixtures("offline")
def test_the_forests_sample_and_batches_fetched_ahead_take_turns_at_the_model(tmp_path):
    in_use, met = threading.Lock(), []

    def slowly(activations: torch.Tensor) -> torch.Tensor:
        if not in_use.acquire(blocking=False):
            met.append(threading.current_thread().name)
            return activations
        time.sleep(0.02)  # slower than the training, which is therefore always waiting for a batch
        in_use.release()
        return activations

    run(tmp_path, TREES, model=hooked_model(slowly), prefetch_llm_batches=8, n_checkpoints=0)
    assert not met


def run(tmp_path: Path, forest_logging: ForestLogging | None = None, **overrides: Any) -> tuple[Any, list[float]]:
    """Thirty steps with our runner; the SAE and every step's loss."""
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=LOG_EVERY)
    with recorded_steps() as steps:
        _, sae = run_ours(tmp_path, "", options={"forest_logging": forest_logging}, **{"logger": logger} | overrides)
    return sae, [step.loss for step in steps]


def table(folder: Path, name: str) -> list[dict[Any, Any]]:
    """Rows of a table that was logged."""
    [path] = folder.glob(f"wandb/offline-run-*/files/{name}")
    content = json.loads(path.read_text())
    assert content["columns"] == COLUMNS
    return [dict(zip(COLUMNS, row, strict=True)) for row in content["data"]]


def test_the_forest_is_logged_after_every_update(tmp_path, offline):
    sae, losses = run(tmp_path, TREES)
    wandb.teardown()
    rows = history(offline)
    updates = {step: row for step, row in rows.items() if "forest/trees/path" in row}
    assert list(updates) == [3, 6, 10, 20, 30], "every update, and the one at the end"
    for row in updates.values():
        for boundary in ("level_0_to_1", "level_1_to_2"):
            assert 0 <= row[f"forest/{boundary}_p_parent_given_child"] <= 1
            assert row[f"forest/{boundary}_hamming"] >= 0
    assert len({row["forest/level_1_to_2_hamming"] for row in updates.values()}) == len(updates)

    # The table shows the forest as it was: the last one is the one that was saved.
    forest, concepts, last = sae.forest, sae.concepts(), table(offline, updates[30]["forest/trees/path"])
    number = {forest.levels.name(feature): feature for feature in range(forest.n_features)}
    assert 1 <= len({row["tree"] for row in last}) <= 5
    for row in last:
        parent = int(concepts.parents[number[row["feature"]]])
        assert row["parent"] == (None if parent < 0 else forest.levels.name(parent))
        assert number[row["tree"]] == forest.path(number[row["feature"]])[0]
    assert any("⟨" in row["tokens it fires on"] for row in last), "the tiny model has no tokenizer, so numbers"

    # What is measured is what evaluate_forest says of the saved SAE on the text's first tokens.
    x = residual_activations(13)
    evaluation = evaluate_forest(sae, forest, x)
    for boundary in evaluation.boundaries:
        name = f"forest/level_{boundary.parent_level}_to_{boundary.parent_level + 1}_hamming"
        assert updates[30][name] == pytest.approx(boundary.hamming, rel=1e-4)

    # So is the explorer page, as an artifact.
    [path] = offline.glob("wandb/offline-run-*/run-*.wandb")
    artifacts = [record.request.log_artifact.artifact for record in records(path) if record.HasField("request")]
    artifacts += [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]
    [page] = [artifact for artifact in artifacts if artifact.type == "explorer"]
    [entry] = page.manifest.contents
    assert entry.path == "explorer.html"
    out = tmp_path / "out"
    assert entry.size == (out / "explorer.html").stat().st_size
    saved: Any = SAE.load_from_disk(out)
    assert saved.forest == sae.forest
    dashboards = Dashboards.load(out / "dashboards", fingerprint(saved, saved.forest))
    assert dashboards.n_tokens == 13 * CONTEXT

    # And nothing of it changes the training.
    assert run(tmp_path / "without", logger=LoggingConfig(log_to_wandb=False))[1] == losses


def test_a_log_that_fails_does_not_cost_the_training(tmp_path, offline, monkeypatch, caplog):
    def fail(*_: Any) -> None:
        raise RuntimeError("the tables are full")

    monkeypatch.setattr("sae_lens_hsae.training.forest_log.evaluate_forest", fail)
    _, losses = run(tmp_path, ForestLogging(trees=True, n_tokens=100))
    assert len(losses) == 30
    assert "the forest could not be logged" in caplog.text
    assert offline.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"logger": LoggingConfig(log_to_wandb=False)}, "log_to_wandb=False"),
        ({"output_path": None}, "output_path=None"),
        ({"use_cached_activations": True, "cached_activations_path": "x"}, "use_cached_activations=True"),
    ],
)
def test_a_log_that_could_hold_nothing_is_refused(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, TREES, **overrides)


def test_a_sample_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="n_tokens=0 must be at least 1"):
        ForestLogging(n_tokens=0)
