"""SAELens' trainer state, read without running code of the file's, and checked before anything is changed by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae_lens_hsae.storage.json_files import printable


def read_trainer_state(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote for SAELens' trainer, if it is nothing but tensors, numbers, strings and containers."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; resume from another checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zip files each have their own
        raise ValueError(f"{str(path)!r} is damaged ({printable(error)}); resume from another checkpoint") from error
    if not isinstance(state, dict):
        raise ValueError(f"{str(path)!r} holds no trainer state, but {type(state).__name__}")
    return state


def check_trainer_state(state: dict[str, Any], path: Path, optimizer: torch.optim.Optimizer, d_sae: int) -> None:
    """Check that a state is of this many features and of Adam's own parameters; nothing is changed."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        fits = state["act_freq_scores"].shape == (d_sae,) and all(
            moments["exp_avg"].shape == parameters[i].shape for i, moments in state["optimizer"]["state"].items()
        )
    except (AttributeError, LookupError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{str(path)!r} does not fit this run: it is of other features or parameters; resume with the "
            f"configuration of the checkpoint, or from another one"
        )
