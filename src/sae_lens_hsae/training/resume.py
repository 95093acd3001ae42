"""The checkpoint that a run goes on from: which it is, and whether it can be gone on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import logger
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_hsae.sae.model_files import check_architecture
from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.storage.whole_files import delete_unfinished
from sae_lens_hsae.training.checkpoints import differences, newest_valid, runner_config, verify
from sae_lens_hsae.training.store import check_resumable

AUTO = "auto"


def resume_newest(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Have a run go on from the newest whole checkpoint, in the folder where that stands."""
    if cfg.checkpoint_path is None:
        raise ValueError(f"resume_from_checkpoint={AUTO!r} needs a checkpoint_path, where to look")
    root = Path(cfg.checkpoint_path).parent  # SAELens appends the run's own folder to what was given
    newest = newest_valid(root, cfg.to_dict())
    cfg.resume_from_checkpoint = None
    if newest is None:
        logger.warning(f"no checkpoint of this configuration in {str(root)!r}; training begins")
        return
    delete_unfinished(newest.parent)
    cfg.resume_from_checkpoint, cfg.checkpoint_path = str(newest), str(newest.parent)


def check_checkpoint(checkpoint: Path, config: dict[str, Any]) -> None:
    """Refuse what is no checkpoint, or one of another architecture, or not whole, before anything is loaded.

    Of a run with another configuration than ``config`` the fields are named: it goes on with these.
    """
    cfg_path = checkpoint / SAE_CFG_FILENAME
    if not cfg_path.exists():
        raise FileNotFoundError(
            f"resume_from_checkpoint={str(checkpoint)!r} holds no {SAE_CFG_FILENAME}; "
            f"give the folder of one checkpoint, which is named after its number of samples, or {AUTO!r}"
        )
    check_architecture(cfg_path)
    check_resumable(checkpoint)
    if verify(checkpoint).finished:
        raise ValueError(
            f"resume_from_checkpoint={str(checkpoint)!r} is of a finished run, whose activation scale is folded into "
            f"the weights; take an earlier checkpoint"
        )
    if other := differences(runner_config(checkpoint) or config, config):
        logger.warning(
            f"resume_from_checkpoint={str(checkpoint)!r} is of a run with another {printable(', '.join(other))}; from "
            "here on the values of this configuration hold"
        )
