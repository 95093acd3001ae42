"""What a resumed run takes from a checkpoint's trainer: its state, read without running code, and its learning rate."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.optim import get_lr_scheduler

from sae_lens_hsae.storage.json_files import printable


def read_trainer_state(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote for SAELens' trainer, if it is nothing but tensors, numbers, strings and containers."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; resume from another checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zip files each have their own
        raise ValueError(f"{str(path)!r} is damaged ({printable(error)}); resume from another checkpoint") from error


def schedule_at(
    step: int, optimizer: torch.optim.Optimizer, cfg: SAETrainerConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """SAELens' schedule of ``cfg`` after this many steps, for an optimizer that keeps its moments alone."""
    for group in optimizer.param_groups:
        group["lr"] = cfg.lr
        group["betas"] = (cfg.adam_beta1, cfg.adam_beta2)
        group.pop("initial_lr", None)
    assert cfg.lr_end is not None  # set by SAELens' configuration
    schedule = get_lr_scheduler(
        cfg.lr_scheduler_name,
        lr=cfg.lr,
        optimizer=optimizer,
        warm_up_steps=cfg.lr_warm_up_steps,
        decay_steps=cfg.lr_decay_steps,
        training_steps=cfg.total_training_steps,
        lr_end=cfg.lr_end,
        num_cycles=cfg.n_restart_cycles,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        for _ in range(step):
            schedule.step()
    return schedule
