"""What a run is refused for, or warned of, before it begins: its sizes, and places that cannot be written to."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.storage.json_files import check_storable, is_count
from sae_lens_hsae.storage.whole_files import ANOTHER_PATH, check_writable
from sae_lens_hsae.training.distributed.ranks import n_launched

PATHS = ("output_path", "resume_from_checkpoint", "from_pretrained_path", "cached_activations_path")
SECRET_NAME = re.compile(r"(^|_)(token|secret|password|api_key)$", re.IGNORECASE)
PASSWORD = re.compile(r"://[^/\s]*:[^/\s]*@")
AT_LEAST = {
    "train_batch_size_tokens": 1,
    "store_batch_size_prompts": 1,
    "n_batches_in_buffer": 1,
    "n_batches_for_norm_estimate": 1,
    "feature_sampling_window": 1,
    "n_checkpoints": 0,
    "lr": 0,
}


def check_run(
    cfg: LanguageModelSAERunnerConfig[Any], max_bad_batches: int = 0, keep_checkpoints: int | None = None
) -> None:
    """Check a run before anything is loaded: a ValueError or an OSError names the field and the remedy."""
    if cfg.prefetch_llm_batches and (cfg.n_checkpoints > 0 or cfg.resume_from_checkpoint):
        raise ValueError(
            f"prefetch_llm_batches={cfg.prefetch_llm_batches!r}: batches fetched ahead belong to no step yet, so a "
            f"checkpoint could not be resumed exactly; set it to False, or n_checkpoints=0 and "
            f"resume_from_checkpoint=None"
        )
    check_steps(cfg)
    if not is_count(max_bad_batches):
        raise ValueError(f"max_bad_batches={max_bad_batches!r} must be a whole number, 0 or more")
    if keep_checkpoints is not None and not (is_count(keep_checkpoints) and keep_checkpoints > 0):
        raise ValueError(f"keep_checkpoints={keep_checkpoints!r} must be 1 or more, or None to keep all")
    n_ranks = n_launched()
    if cfg.train_batch_size_tokens % n_ranks:
        raise ValueError(
            f"train_batch_size_tokens={cfg.train_batch_size_tokens}, the batch of all {n_ranks} ranks together, "
            f"must be a multiple of {n_ranks}"
        )
    check_saved(cfg)
    check_places(cfg)


def check_steps(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check that there is a step to train, and the sizes of which SAELens says nothing before it fails at them."""
    for name, least in AT_LEAST.items():
        if not getattr(cfg, name) >= least:
            raise ValueError(f"{name}={getattr(cfg, name)} must be at least {least}")
    if not (is_count(cfg.seed) and cfg.seed < 2**32):
        raise ValueError(f"seed={cfg.seed!r} must be a whole number from 0 to {2**32 - 1}")
    for name in ("wandb_log_frequency", "eval_every_n_wandb_logs") if cfg.logger.log_to_wandb else ():
        if getattr(cfg.logger, name) < 1:
            raise ValueError(f"{name}={getattr(cfg.logger, name)} must be at least 1")
    if cfg.logger.log_to_wandb and cfg.n_eval_batches < 1:
        raise ValueError(
            f"n_eval_batches={cfg.n_eval_batches} must be at least 1 where log_to_wandb is on; to evaluate less, raise "
            "eval_every_n_wandb_logs"
        )
    n_positions = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    n_ranks = n_launched()  # each has a buffer of its own, and its part of the batch
    if cfg.n_batches_in_buffer * n_positions < cfg.train_batch_size_tokens // n_ranks:
        each = "" if n_ranks == 1 else f" of {n_ranks} ranks together"
        raise ValueError(
            f"n_batches_in_buffer={cfg.n_batches_in_buffer} makes a buffer of {cfg.n_batches_in_buffer * n_positions} "
            f"activations, of {n_positions} positions of each context, smaller than train_batch_size_tokens="
            f"{cfg.train_batch_size_tokens}{each}; raise n_batches_in_buffer to at least "
            f"{-(-cfg.train_batch_size_tokens // n_ranks // n_positions)}, or take smaller batches"
        )
    if cfg.training_tokens < cfg.train_batch_size_tokens:
        raise ValueError(
            f"training_tokens={cfg.training_tokens} is less than one step of train_batch_size_tokens="
            f"{cfg.train_batch_size_tokens}; give more, such as 30000000"
        )


def check_saved(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check that every setting can be saved, and none is secret; paths become strings.

    SAELens writes them to cfg.json, runner_cfg.json, checkpoints and W&B, the first time after the last step.
    """
    for name in PATHS:
        if isinstance(getattr(cfg, name), PathLike):
            setattr(cfg, name, fspath(getattr(cfg, name)))
    for name, value in cfg.to_dict().items():
        check_storable(name, value)
    check_no_secret(cfg.model_from_pretrained_kwargs)


def check_no_secret(options: Any) -> None:
    """Refuse an access token or a password among a language model's options, and in the options inside these."""
    for name, value in options.items() if isinstance(options, dict) else ():
        check_no_secret(value)
        if isinstance(value, str) and (SECRET_NAME.search(name) or PASSWORD.search(value)):
            raise ValueError(
                f"model_from_pretrained_kwargs holds {name!r}, which would be saved with the SAE and go to W&B; leave "
                "it out, and log in with hf auth login, or set HF_TOKEN, HTTPS_PROXY"
            )


def late_forest(cfg: LanguageModelSAERunnerConfig[Any], steps_before: int = 0) -> list[str]:
    """What to say of a run that ends before its first forest would shape it, of an SAE that took steps before."""
    sae, steps = cfg.sae, steps_before + cfg.total_training_steps
    is_shaped = sae.structural_loss_coefficient > 0 or sae.perturbation_rate > 0
    if steps > sae.hierarchy_first_update or not is_shaped:
        return []
    return [
        f"training ends at step {steps:,}, before its first forest "
        f"(hierarchy_first_update={sae.hierarchy_first_update:,}): levels and forest will be those of training without "
        f"hierarchy; train longer, or set hierarchy_first_update to about {max(1, steps // 2)}"
    ]


def folded_scale(own: HierarchicalTrainingSAEConfig) -> list[str]:
    """What to say of an SAE with this configuration that took steps before, if its scale may be folded in."""
    if own.outlier_limit is not None or own.normalize_activations != "none":
        return []
    return [
        "the SAE was trained before, with outlier_limit=None, and has normalize_activations='none': if a scale was "
        "folded into it, as at the end of a training, θ and biases are in other units than λ, jumprelu_bandwidth and "
        "lr, and levels may collapse; go on from a checkpoint before the last, or train a new one with "
        "outlier_limit=3.0, which keeps the scale apart"
    ]


def check_places(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check that what a run leaves can be written, else an OSError; SAELens' own runner finds out after training."""
    if cfg.output_path is not None:
        check_writable("output_path", Path(cfg.output_path))
    if cfg.checkpoint_path is not None:  # a run that is stopped writes there, too
        check_writable("checkpoint_path", Path(cfg.checkpoint_path), f"{ANOTHER_PATH}, or None")
