"""The state of an unfinished collection on disk, so that an interruption costs little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lens_hsae.storage.whole_files import file_written_whole


def save_progress(path: Path, parts: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write all tensors, whole numbers and generators of accumulators, and what makes them fit, ``about``."""
    tensors, numbers = {}, {}
    for part, accumulator in parts.items():
        for name, value in vars(accumulator).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{part}.{name}"] = value.detach().cpu().contiguous()
            elif isinstance(value, torch.Generator):
                tensors[f"{part}.{name}"] = value.get_state()
            elif isinstance(value, int):
                numbers[f"{part}.{name}"] = value
    with file_written_whole(path) as aside:
        save_file(tensors, aside, metadata={"about": json.dumps(about, sort_keys=True), "numbers": json.dumps(numbers)})


def load_progress(path: Path, parts: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Restore what `save_progress` wrote ``about`` the same; nothing changes if there is none, or it does not fit."""
    if not path.is_file():
        return
    states: list[tuple[Any, str, Any]] = []
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if json.loads(metadata["about"]) != json.loads(json.dumps(about)):
                return
            numbers = json.loads(metadata["numbers"])
            for part, accumulator in parts.items():
                for name, value in vars(accumulator).items():
                    key = f"{part}.{name}"
                    if isinstance(value, torch.Tensor):
                        found = file.get_tensor(key)
                        grows = not value.numel() and found.ndim == value.ndim
                        if found.dtype != value.dtype or (found.shape != value.shape and not grows):
                            return
                        states.append((accumulator, name, found.to(value.device)))
                    elif isinstance(value, torch.Generator):
                        states.append((accumulator, name, torch.Generator().set_state(file.get_tensor(key))))
                    elif isinstance(value, int):
                        states.append((accumulator, name, numbers[key]))
    except Exception:  # a torn file, or one of an older layout: safetensors raises its own errors
        return
    for accumulator, name, value in states:
        setattr(accumulator, name, value)
