"""What a training run will take, from its config alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from sae_lens.util import str_to_dtype

from sae_lens_hsae.forest.parents import MEASURED_ON_ACTIVATIONS

FLOPS_PER_WEIGHT = 6
"""Per token: two in the forward pass, four in the backward pass."""


def estimate(cfg: Any) -> dict[str, float]:
    """Tokens, steps, memory and arithmetic of a run; the language model's own share is not known and left out.

    Memory is a lower bound: weights with gradients and Adam's two moments, one batch's activations of all features
    with their gradients, SAELens' activation buffer and, where the similarity counts how features fire together, its
    matrices.

    Args:
        cfg: SAELens' runner config.

    Returns:
        ``training_tokens``, ``steps``, ``parameters``, ``weights_gb``, ``batch_gb``, ``buffer_gb``,
        ``coactivation_gb``, ``sae_teraflop`` (the products of encoder and decoder, were both dense), and
        ``hours_per_teraflop_per_second``: divide it by what your device reaches.
    """
    sae = cfg.sae
    size = _bytes(cfg.dtype)
    products = 2 * sae.d_in * sae.d_sae
    widths = getattr(sae, "level_widths", [])
    parameters = products + 2 * sae.d_sae + max(1, len(widths)) * sae.d_in  # with b_enc, thresholds, every b_dec
    coactivation = sum(a * b for a, b in pairwise(widths))
    if getattr(sae, "hierarchy_similarity", None) not in MEASURED_ON_ACTIVATIONS:
        coactivation = 0
    buffer = cfg.n_batches_in_buffer * cfg.context_size * sae.d_in
    teraflop = FLOPS_PER_WEIGHT * products * cfg.training_tokens / 1e12
    return {
        "training_tokens": cfg.training_tokens,
        "steps": cfg.training_tokens // cfg.train_batch_size_tokens,
        "parameters": parameters,
        "weights_gb": 4 * parameters * size / 1e9,
        "batch_gb": 2 * cfg.train_batch_size_tokens * sae.d_sae * size / 1e9,
        "buffer_gb": buffer * size / 1e9,
        "coactivation_gb": coactivation * 4 / 1e9,
        "sae_teraflop": teraflop,
        "hours_per_teraflop_per_second": teraflop / 3600,
    }


def _bytes(dtype: str | torch.dtype) -> int:
    return (dtype if isinstance(dtype, torch.dtype) else str_to_dtype(dtype)).itemsize
