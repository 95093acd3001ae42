"""Checks of stored dashboards, which may come from anybody, before anything reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_lens_hsae.forest import validate_parents
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.interpret.feature_cache.statistics import N_BINS
from sae_lens_hsae.storage.json_files import is_count

MAX_TOKEN = 2**24 - 1
"""No vocabulary has more; tables as long as the largest token id are made of them."""

TOKENS = ("token_ids", "strongest_tokens", "promoted_tokens", "suppressed_tokens")
COUNTS = ("n_firing", "n_with_parent", "n_any_child", "n_with_any_child", "histogram")
AGAIN = "collect the dashboards again"


def check_numbers(folder: Path, values: Mapping[str, Any]) -> Levels:
    """Check the numbers and names of a manifest, all of them there; its levels."""
    if not isinstance(values["fingerprint"], str):
        raise ValueError(f"{folder}: fingerprint={values['fingerprint']!r} is no text; {AGAIN}")
    for name in ("n_tokens", "n_contexts"):
        if not is_count(values[name]):
            raise ValueError(f"{folder}: {name}={values[name]!r} is no number; {AGAIN}")
    if not isinstance(values["level_widths"], list):
        raise ValueError(f"{folder}: level_widths={values['level_widths']!r} is no list; {AGAIN}")
    return Levels(tuple(values["level_widths"]))


def check_tensors(
    folder: Path, fields: Mapping[str, Any], settings: Any, levels: Levels, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Check shapes, dtypes and ranges of indices; a ValueError names the first tensor that is wrong."""
    sizes = {
        "features": levels.n_features, "bins": N_BINS, "slots": settings.n_slots,
        "family_slots": settings.n_family_slots, "window": settings.window, "strongest": settings.n_strongest_tokens,
        "nearest": settings.n_nearest,
    }  # fmt: skip
    for name, meta in fields.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        expected = [sizes.get(size) for size in meta["shape"]]
        fits = len(expected) == tensor.ndim and all(
            size in (None, actual) for size, actual in zip(expected, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != meta["dtype"]:
            raise ValueError(
                f"{folder}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected {meta['dtype']} of "
                f"({', '.join(meta['shape'])}) = {expected}; {AGAIN}"
            )
    validate_parents(tensors["parents"], levels)
    limits = dict.fromkeys(TOKENS, (-1, MAX_TOKEN))
    limits |= {name: (0, torch.iinfo(torch.int64).max) for name in COUNTS}
    limits |= {"nearest": (-1, levels.n_features - 1), "peak_positions": (0, settings.window - 1)}
    for name, (least, most) in limits.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.numel() and (int(tensor.min()) < least or int(tensor.max()) > most):
            raise ValueError(
                f"{folder}: {name} goes from {tensor.min()} to {tensor.max()}, not {least} … {most}; {AGAIN}"
            )
