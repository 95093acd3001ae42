"""The learning rate of a run that is resumed, maybe with another one than it began with."""

from __future__ import annotations

import warnings

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.training.optim import get_lr_scheduler


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
