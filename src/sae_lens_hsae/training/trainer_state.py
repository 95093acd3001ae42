"""SAELens' trainer state, read without running code of the file's, and checked before anything is changed by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae_lens_hsae.storage.json_files import is_count, is_number, printable

COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples")


def read_trainer_state(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote for SAELens' trainer.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or holds anything but tensors, numbers, strings and containers of them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; resume from another checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zip files each have their own
        raise ValueError(f"{str(path)!r} is damaged ({printable(error)}); resume from another checkpoint") from error
    if not isinstance(state, dict):
        raise ValueError(f"{str(path)!r} holds no trainer state, but {type(state).__name__}")
    return state


def check_trainer_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, lr_scheduler: dict[str, Any], d_sae: int
) -> None:
    """Check that a state is one of this optimizer, this schedule and this many features; nothing is changed.

    Args:
        state: from `read_trainer_state`.
        optimizer: Adam, as SAELens makes it.
        lr_scheduler: a state of the schedule.

    Raises:
        ValueError: naming the first entry that does not fit.
    """
    for name in COUNTS:
        _check(is_count(state.get(name)), name, state.get(name))
    _check(isinstance(state.get("started_fine_tuning"), bool), "started_fine_tuning", state.get("started_fine_tuning"))
    _check(state.get("coefficient_schedulers") == {}, "coefficient_schedulers", state.get("coefficient_schedulers"))
    for name in ("act_freq_scores", "n_forward_passes_since_fired"):
        _check(_is_tensor(state.get(name), (d_sae,)), name, state.get(name))
    saved = state.get("lr_scheduler")
    _check(isinstance(saved, dict) and _fits(saved, lr_scheduler), "lr_scheduler", saved)
    _check_optimizer(state.get("optimizer"), optimizer)


def _check_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> None:
    groups = optimizer.state_dict()["param_groups"]
    _check(isinstance(state, dict), "optimizer", state)
    saved: Any = state.get("param_groups")
    fits = isinstance(saved, list) and _fits(saved, groups)
    fits = fits and all(group.get("params") == own["params"] for group, own in zip(saved, groups, strict=True))
    _check(fits, "optimizer's param_groups", saved)
    moments: Any = state.get("state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _check(isinstance(moments, dict) and set(moments) <= set(range(len(parameters))), "optimizer's state", moments)
    for i, of_one in moments.items():
        shapes = {"step": (), "exp_avg": tuple(parameters[i].shape), "exp_avg_sq": tuple(parameters[i].shape)}
        fits = isinstance(of_one, dict) and of_one.keys() == shapes.keys()
        fits = fits and all(_is_tensor(of_one[name], shape) for name, shape in shapes.items())
        _check(fits, f"optimizer's state of parameter {i}", of_one)


def _check(holds: bool, name: str, value: Any) -> None:
    if not holds:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:200]
        raise ValueError(
            f"the trainer state does not fit this run: {name} is {shown}; resume with the configuration of the "
            f"checkpoint, or from another one"
        )


def _is_tensor(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and tuple(value.shape) == shape


def _fits(value: Any, like: Any) -> bool:
    """Whether a value is built as another, of which dicts may lack entries; numbers may be of either kind."""
    if like is None or isinstance(like, bool):
        return value is None or isinstance(value, bool)
    if isinstance(like, (int, float)):
        return is_number(value)
    if isinstance(like, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(like)
        return same and all(_fits(entry, own) for entry, own in zip(value, like, strict=True))
    if isinstance(like, dict):
        same = isinstance(value, dict) and value.keys() <= like.keys()
        return same and all(_fits(entry, like[name]) for name, entry in value.items())
    return type(value) is type(like)
