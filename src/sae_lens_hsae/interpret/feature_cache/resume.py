"""The state of an unfinished collection on disk, so that an interruption costs little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lens_hsae.storage.json_files import is_count
from sae_lens_hsae.storage.whole_files import file_written_whole

RANDOM_STATE = "random_state"


def save_progress(path: Path, parts: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write every tensor, number and random generator of some accumulators; beside the target, then renamed.

    Args:
        path: the file.
        parts: accumulators by name. Their tensors, whole numbers and generators are all of their state.
        about: what makes the state fit: the same to be given to `load_progress`, except for numbers read there.
    """
    tensors, numbers = {}, {}
    for part, accumulator in parts.items():
        for name, value in vars(accumulator).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{part}.{name}"] = value.detach().cpu().contiguous()
            elif isinstance(value, torch.Generator):
                tensors[f"{part}.{name}.{RANDOM_STATE}"] = value.get_state()
            elif isinstance(value, int):
                numbers[f"{part}.{name}"] = value
    with file_written_whole(path) as aside:
        save_file(tensors, aside, metadata={"about": json.dumps(about, sort_keys=True), "numbers": json.dumps(numbers)})


def load_progress(path: Path, parts: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Restore what `save_progress` wrote; False, and nothing changed, if there is none or it does not fit.

    An unfit state is one of other weights, of other settings or of another version; it is of no use to anybody, and so
    collecting starts afresh.
    """
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if json.loads(metadata.get("about", "null")) != json.loads(json.dumps(about)):
                return False
            numbers = json.loads(metadata["numbers"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except Exception:  # a torn file: safetensors raises its own errors
        return False
    if not _fits(parts, tensors, numbers):
        return False
    for part, accumulator in parts.items():
        for name, value in vars(accumulator).items():
            if isinstance(value, torch.Tensor):
                setattr(accumulator, name, tensors[f"{part}.{name}"].to(value.device))
            elif isinstance(value, torch.Generator):
                value.set_state(tensors[f"{part}.{name}.{RANDOM_STATE}"])
            elif isinstance(value, int):
                setattr(accumulator, name, numbers[f"{part}.{name}"])
    return True


def _fits(parts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], numbers: Any) -> bool:
    """Whether a file holds all of the accumulators' state, in tensors of their kind; those that grow are empty now."""
    for part, accumulator in parts.items():
        for name, value in vars(accumulator).items():
            if isinstance(value, torch.Tensor):
                found = tensors.get(f"{part}.{name}")
                if found is None or found.dtype != value.dtype or found.ndim != value.ndim:
                    return False
                if value.numel() and found.shape != value.shape:
                    return False
            elif isinstance(value, torch.Generator):
                found = tensors.get(f"{part}.{name}.{RANDOM_STATE}")
                if found is None or found.dtype != torch.uint8 or found.shape != value.get_state().shape:
                    return False
            elif isinstance(value, int) and not (isinstance(numbers, dict) and is_count(numbers.get(f"{part}.{name}"))):
                return False
    return True
