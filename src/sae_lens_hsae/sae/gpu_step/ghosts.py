"""Ghost gradients (`ghost_gradients.py`) with places for dead features, so that no shape depends on which are dead."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.ghost_gradients import ghost_gradient_loss
from sae_lens_hsae.sae.gpu_step.products import product_dtype
from sae_lens_hsae.sae.level_activation import Encoder

ROOM = 64
"""At least this many places are left for features that have died since they were counted."""


def places_for(n_dead: Sequence[int], levels: Levels) -> tuple[int, ...]:
    """How many features of each level to make room for, if this many were dead a step ago; none where none was."""
    wanted = (0 if n == 0 else 1 << (n + ROOM - 1).bit_length() for n in n_dead)
    return tuple(min(n, width) for n, width in zip(wanted, levels.widths, strict=True))


def ghost_gradients(
    errors: torch.Tensor,
    x: torch.Tensor,
    dead: torch.Tensor,
    places: Sequence[int],
    encoder: Encoder,
    W_dec: torch.Tensor,
    levels: Levels,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of the dead features of all levels, (); those for which there is no place wait for the next step.

    Takes the errors x − x̂ (L, batch, d_in), x (batch, d_in), which features are dead, (n_features,) bool, how many of
    each level there is room for, decoder rows (n_features, d_in) and weights of the tokens (batch,), None where all
    count alike. With the very number of dead features as places it is exact.
    """
    W_enc, b_enc, b_dec = encoder
    dtype = product_dtype(x.device, W_enc.dtype)
    total = torch.zeros((), dtype=errors.dtype, device=errors.device)
    for level, (own, n_places) in enumerate(zip(levels, places, strict=True)):
        if n_places == 0:
            continue
        # Dead ones first, of them and of the others the first ones.
        is_dead, order = dead[own].float().sort(descending=True, stable=True)
        chosen, is_dead = own.start + order[:n_places], is_dead[:n_places] > 0
        shifted = x if b_dec is None else x - b_dec[level]
        columns = W_enc.index_select(1, chosen)
        pre = shifted.to(dtype) @ columns.to(dtype) + b_enc.index_select(0, chosen)
        # exp makes nothing of what is not dead, and so does its gradient.
        pre = pre.masked_fill(~is_dead, -torch.inf)
        loss = ghost_gradient_loss(errors[level], pre, W_dec.index_select(0, chosen), weights)
        total = total + torch.where(is_dead.any(), loss, torch.zeros_like(loss))
    return total
