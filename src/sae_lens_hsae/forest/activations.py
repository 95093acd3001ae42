"""Activations in pieces that a level's SAE can encode at once, however they come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

MAX_TOKENS_AT_ONCE = 1024
# Bounds the (tokens, features) tensors of one level: 128 MiB in float32, however wide the level.
MAX_ELEMENTS_AT_ONCE = 2**25


def tokens_at_once(n_features: int) -> int:
    """How many tokens a level of so many features encodes at once."""
    return max(1, min(MAX_TOKENS_AT_ONCE, MAX_ELEMENTS_AT_ONCE // n_features))


def token_chunks(
    activations: Iterable[torch.Tensor], d_in: int, at_once: int, n_tokens: int | None = None
) -> Iterator[torch.Tensor]:
    """Batches (batch, d_in), or one tensor of all tokens, cut to ``at_once`` rows, ``n_tokens`` in all; None takes all.

    A ValueError if a batch has another shape, or holds NaN or infinity.
    """
    left = math.inf if n_tokens is None else n_tokens
    batches = [activations] if isinstance(activations, torch.Tensor) else activations
    for i, batch in enumerate(batches):
        if batch.ndim != 2 or batch.shape[1] != d_in:
            raise ValueError(
                f"activations: batch {i} has shape {tuple(batch.shape)}, expected (batch, {d_in}), d_in of the levels; "
                "flatten sequences to tokens and take the hook that the SAEs were trained on"
            )
        # The sum is quicker to check; it may overflow without any of them being infinite.
        if not batch.sum().isfinite() and not batch.isfinite().all():
            raise ValueError(f"activations: batch {i} holds NaN or infinity; leave out those tokens")
        batch = batch[: min(left, len(batch))]
        yield from batch.split(at_once) if len(batch) else ()
        left -= len(batch)
        if left <= 0:
            return
