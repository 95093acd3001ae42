"""Runs of Weights & Biases without a network, read back from the file of the offline run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[reportAttributeAccessIssue]  # generated


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
