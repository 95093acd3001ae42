"""The learning rate of a run that is resumed with another one than it began with."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.training.optim import get_lr_scheduler

from sae_lens_hsae.storage.json_files import read_json_object

OF_THE_OPTIMIZER = (
    "lr",
    "lr_end",
    "lr_scheduler_name",
    "lr_warm_up_steps",
    "lr_decay_steps",
    "n_restart_cycles",
    "adam_beta1",
    "adam_beta2",
)
"""Fields of SAELens' configuration that a checkpoint's optimizer and scheduler hold, beside the number of steps."""


def has_another_schedule(checkpoint: Path, cfg: SAETrainerConfig) -> bool:
    """Whether the run that wrote a checkpoint had another learning rate or length; no, if it does not say."""
    path = checkpoint / RUNNER_CFG_FILENAME
    if not path.exists():
        return False
    saved = read_json_object(path)
    steps = saved.get("training_tokens", 0) // max(1, saved.get("train_batch_size_tokens", 1))
    return steps != cfg.total_training_steps or any(saved.get(name) != getattr(cfg, name) for name in OF_THE_OPTIMIZER)


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
