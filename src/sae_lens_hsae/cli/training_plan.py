"""What ``hsae train --dry-run`` says: a run on one screen, and what about it is probably not meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sae_lens.util import str_to_dtype

from sae_lens_hsae.sae.recent_firing import MOST_PACKED, tokens_kept

CHARACTERS_PER_TOKEN = 4
"""Rough, in English."""

WELL_MIXED = 100
"""Contexts in SAELens' buffer below which a batch has many tokens of each text (`experiments/mixing.py`)."""

FLOPS_PER_WEIGHT = 6
"""Per token: two in the forward pass, four in the backward pass."""


def estimate(cfg: Any) -> dict[str, float]:
    """Tokens, steps, memory and arithmetic of a run; the language model's own share is not known and left out.

    Memory is a lower bound: weights with gradients and Adam's two moments, one batch's activations of all features with
    their gradients, SAELens' activation buffer and, where the similarity is measured on what fires, that.
    ``sae_teraflop`` is of the products of encoder and decoder, were both dense.
    """
    sae = cfg.sae
    size = str_to_dtype(sae.dtype).itemsize
    # SAELens' store computes activations in float32, whatever dtype says, and holds cached ones as they are read.
    held = str_to_dtype(cfg.dtype).itemsize if cfg.use_cached_activations else torch.float32.itemsize
    products = 2 * sae.d_in * sae.d_sae
    parameters = products + 2 * sae.d_sae + len(sae.level_widths) * sae.d_in  # with b_enc, thresholds, every b_dec
    buffer = cfg.n_batches_in_buffer * cfg.context_size * sae.d_in
    teraflop = FLOPS_PER_WEIGHT * products * cfg.training_tokens / 1e12
    return {
        "training_tokens": cfg.training_tokens,
        "steps": cfg.training_tokens // cfg.train_batch_size_tokens,
        "parameters": parameters,
        "weights_gb": 4 * parameters * size / 1e9,
        "batch_gb": 2 * cfg.train_batch_size_tokens * sae.d_sae * size / 1e9,
        "buffer_gb": buffer * held / 1e9,
        "firing_gb": _bytes_of_firing(sae, cfg.train_batch_size_tokens, cfg.device) / 1e9,
        "sae_teraflop": teraflop,
        "hours_per_teraflop_per_second": teraflop / 3600,
    }


def _bytes_of_firing(sae: Any, batch: int, device: str) -> float:
    """Of what fired on the last tokens (`RecentFiring`): a token, and for each feature and batch a number; or bits."""
    if not sae.parent_rule.is_measured:
        return 0
    kept = tokens_kept(sae.levels, sae.target_l0_per_level)
    if device.startswith("cuda"):
        return min(kept * sae.d_sae / 8, MOST_PACKED)
    return kept * sum(sae.target_l0_per_level) * np.min_scalar_type(batch).itemsize + 4 * sae.d_sae * kept / batch


def warnings_of(cfg: Any, rows: Dataset | None = None) -> list[str]:
    """What about a run is probably not meant, each with its remedy; ``rows`` are the texts where one's own are read."""
    found, steps = [], cfg.training_tokens // cfg.train_batch_size_tokens
    if cfg.lr_warm_up_steps > steps:
        found.append(f"lr_warm_up_steps={cfg.lr_warm_up_steps} is more than all {steps:,} steps; set it lower")
    estimated = {"n_batches_in_buffer": cfg.n_batches_in_buffer * cfg.context_size}
    if cfg.sae.normalize_activations not in ("none", "layer_norm"):
        batches = getattr(cfg, "n_batches_for_norm_estimate", 0)
        estimated["n_batches_for_norm_estimate"] = batches * cfg.train_batch_size_tokens
    for name, n_tokens in estimated.items():
        if n_tokens > cfg.training_tokens:
            found.append(
                f"{name}={getattr(cfg, name)} has it read {n_tokens:,} tokens before the first step, more than it "
                f"trains on ({cfg.training_tokens:,}); set it lower"
            )
    if cfg.n_batches_in_buffer < WELL_MIXED:
        found.append(
            f"n_batches_in_buffer={cfg.n_batches_in_buffer} mixes batches from as many contexts, often of a few "
            f"texts, and levels explain a little less; set it to {WELL_MIXED} or more, as memory allows"
        )
    if rows is not None:
        n_tokens = max(1, sum(map(len, rows["text"])) // CHARACTERS_PER_TOKEN)
        if n_tokens < cfg.training_tokens:
            found.append(
                f"the text has about {n_tokens:,} tokens, so each is read about {cfg.training_tokens / n_tokens:,.1f} "
                "times; measurements afterwards read what was trained on"
            )
    return found


def plan_text(cfg: Any, estimate: Mapping[str, float], warnings: list[str]) -> str:
    """The run on one screen; `estimate` and `warnings_of` gave the other two."""
    sae = cfg.sae
    lines = {
        "language model": f"{cfg.model_name}, {cfg.hook_name}, contexts of {cfg.context_size} tokens",
        "text": cfg.dataset_path,
        "training": f"{cfg.training_tokens:,} tokens, {estimate['steps']:,} steps of {cfg.train_batch_size_tokens:,}, "
        f"lr {cfg.lr:g} ({cfg.lr_scheduler_name}), on {cfg.device}",
        "levels": f"{', '.join(f'{width:,}' for width in sae.level_widths)} features, d_in {sae.d_in:,}, "
        f"L0 {', '.join(f'{target:.3g}' for target in sae.target_l0_per_level)} ({sae.level_activation})",
        "forest": f"from step {sae.hierarchy_first_update:,}, by similarity {sae.hierarchy_similarity!r}; "
        f"ρ {sae.structural_loss_coefficient:g}, r {sae.perturbation_rate:g}",
    }
    memory = [f"{estimate[f'{name}_gb']:.2f} {name}" for name in ("weights", "batch", "buffer", "firing")]
    lines |= {
        "takes": f"at least {sum(estimate[f'{n}_gb'] for n in ('weights', 'batch', 'buffer', 'firing')):.2f} GB "
        f"({', '.join(memory)}) beside the language model",
        "arithmetic": f"{estimate['sae_teraflop']:,.0f} teraflop for the SAE: "
        f"{estimate['hours_per_teraflop_per_second']:.2f} hours at one teraflop per second",
        "checkpoints": f"{cfg.n_checkpoints} in {cfg.checkpoint_path}" if cfg.n_checkpoints else "none",
        "result": cfg.output_path or "not saved: there is no --output_path",
        "W&B": "on" if cfg.logger.log_to_wandb else "off",
    }
    width = max(map(len, lines))
    shown = [f"{name:<{width}}  {value}" for name, value in lines.items()]
    shown += [f"Warning: {warning}" for warning in warnings]
    return "\n".join([*shown, "--json has every field of the config."])
