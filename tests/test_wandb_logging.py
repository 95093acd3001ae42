"""What SAELens' runner logs to Weights & Biases, read back from the file of a real offline run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from host_helpers import WIDTHS, recorded_steps, runner_config, train
from sae_lens import LanguageModelSAETrainingRunner, LoggingConfig
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[reportAttributeAccessIssue]  # generated

LOG_EVERY = 5
EVERY_LEVEL = ("l0", "l0_coefficient", "mse", "explained_variance", "dead_features")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the client writes to, and to nothing else."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # A client that went on line regardless would fail here instead of sending anything.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield tmp_path
    wandb.teardown()


def records(path: Path) -> Iterator[Record]:
    """The records of a run's file, which is a LevelDB log: chunks that never cross the border of a 32 KiB block."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    place, record = 7, b""
    while place + 7 <= len(content):
        left_in_block = -place % 2**15
        if 0 < left_in_block < 7:
            place += left_in_block
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", content, place)
        place += 7 + length
        record += content[place - length : place]
        whole, last = 1, 4
        if kind in (whole, last):
            yield Record.FromString(record)
            record = b""


def history(folder: Path) -> dict[int, dict[str, Any]]:
    """Everything logged in the one run below ``folder``, by step."""
    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows: dict[int, dict[str, Any]] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.setdefault(row["_step"], {}).update(row)
    return rows


def test_levels_and_forest_are_logged(tmp_path, offline):
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=LOG_EVERY, eval_every_n_wandb_logs=2)
    with recorded_steps() as steps:
        sae = train(LanguageModelSAETrainingRunner, runner_config(tmp_path, logger=logger, n_eval_batches=1))
    wandb.teardown()  # ends the process that writes the file; before that its last record may be missing
    rows = history(offline)
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
    evaluated = [step for step, row in rows.items() if "model_performance_preservation" in str(row)]
    assert evaluated == list(range(2 * LOG_EVERY - 1, 30, 2 * LOG_EVERY))
