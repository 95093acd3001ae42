"""Reconstructions of all levels, with the replacements of the perturbation, and their gradients (HSAE §3.1, §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.gpu_step.products import exact_product
from sae_lens_hsae.sae.perturbation import Replacement

REPLACED_AT_A_TIME = 128
"""Replacements are filled up to a multiple of this many features: steps have few different shapes."""


def reconstructions(
    values: torch.Tensor,
    rows: torch.Tensor,
    W_dec: torch.Tensor,
    b_dec: torch.Tensor,
    replaced: Sequence[Replacement],
    levels: Levels,
) -> torch.Tensor:
    """Reconstructions of x by every level, (L, batch, d_in), in float32, or float64 if ``values`` are.

    Takes activations (n_features, batch), W_dec (n_features, d_in), the same without gradient in the dtype of the
    activations, b_dec (L, d_in), and what is replaced at each level but the finest; it may be empty.
    """
    return _Reconstructions.apply(values, W_dec, b_dec, rows, [filled_up(change) for change in replaced], levels)


def filled_up(change: Replacement) -> Replacement:
    """The same replacement with features of sign 0, which change nothing, up to the next multiple; or an empty one."""
    missing = -len(change.features) % REPLACED_AT_A_TIME
    return Replacement(*(torch.nn.functional.pad(tensor, (0, missing)) for tensor in change))


class _Reconstructions(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        W_dec: torch.Tensor,
        b_dec: torch.Tensor,
        rows: torch.Tensor,
        replaced: list[Replacement],
        levels: Levels,
    ) -> torch.Tensor:
        sums = [exact_product(values[own].T, rows[own]) for own in levels]
        for of_level, change in zip(sums, replaced, strict=False):
            if len(change.features):
                of_level += exact_product(_signed(values, change).T, rows.index_select(0, change.features))
        ctx.save_for_backward(values, rows)
        ctx.settings = (replaced, levels, W_dec.dtype, b_dec.dtype)
        return torch.stack(sums).add_(b_dec[:, None])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, rows = ctx.saved_tensors
        replaced, levels, W_dtype, b_dtype = ctx.settings
        errors = grads[0].to(values.dtype)
        of_values = torch.empty_like(values)
        of_W_dec = torch.empty(rows.shape, dtype=grads[0].dtype, device=rows.device)
        for own, error in zip(levels, errors, strict=True):
            torch.mm(rows[own], error.T, out=of_values[own])
            of_W_dec[own] = exact_product(values[own], error)
        for change, error in zip(replaced, errors, strict=False):
            if len(change.features):
                changed = rows.index_select(0, change.features) @ error.T
                of_values.index_add_(0, change.features, changed * change.signs.to(changed.dtype)[:, None])
                of_W_dec.index_add_(0, change.features, exact_product(_signed(values, change), error))
        return of_values, of_W_dec.to(W_dtype), grads[0].sum(1).to(b_dtype), None, None, None


def _signed(values: torch.Tensor, change: Replacement) -> torch.Tensor:
    return values.index_select(0, change.features) * change.signs.to(values.dtype)[:, None]
