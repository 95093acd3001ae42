"""What a run is refused for before anything is loaded: its sizes, and places that cannot be written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig

from sae_lens_hsae.storage.whole_files import check_writable

AT_LEAST = {"store_batch_size_prompts": 1, "n_batches_in_buffer": 1, "n_checkpoints": 0, "lr": 0}


def check_steps(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check that there is a step to train, and the sizes of which SAELens says nothing before it fails at them.

    Raises:
        ValueError: if not.
    """
    for name, least in AT_LEAST.items():
        if not getattr(cfg, name) >= least:
            raise ValueError(f"{name}={getattr(cfg, name)} must be at least {least}")
    if cfg.training_tokens < cfg.train_batch_size_tokens:
        raise ValueError(
            f"training_tokens={cfg.training_tokens} is less than one step of train_batch_size_tokens="
            f"{cfg.train_batch_size_tokens}; give more, such as 30000000"
        )


def check_places(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check that what a run leaves can be written; SAELens' own runner finds out after training.

    Raises:
        OSError: if not.
    """
    if cfg.output_path is not None:
        check_writable("output_path", Path(cfg.output_path))
    if cfg.checkpoint_path is not None and (cfg.n_checkpoints > 0 or cfg.save_final_checkpoint):
        check_writable("checkpoint_path", Path(cfg.checkpoint_path))
