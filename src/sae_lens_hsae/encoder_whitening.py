"""Whitened encoder: all levels' encoder reads (x − μ) Σ^(−1/2) instead of x (not in the paper).

What best tells a rare concept from all others is not its direction d but Σ⁻¹ d, with Σ the covariance of activations.
A gradient gets from one to the other slowly, in activations that vary a thousandfold more along some directions than
along others. In whitened coordinates that is its start. Reconstructions and losses stay those of x, and
after training the whitening is folded into the encoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

REFINED_AT = (16, 64)
"""Steps at which the whitening is made from all batches so far: early in a warm-up, and once more; then it stays."""

SHRINKAGE = 0.1
"""Share of the mean variance that is added along every direction: those that hardly vary are not blown up."""


class Whitening(NamedTuple):
    """z = (x − mean) @ matrix; mean (d_in,), matrix (d_in, d_in)."""

    mean: torch.Tensor
    matrix: torch.Tensor


def follow_moments(mean: torch.Tensor, second: torch.Tensor, x: torch.Tensor, n_before: int) -> None:
    """Take one more batch into the means of x and of x xᵀ over all batches, in place.

    Args:
        mean: (d_in,); second: (d_in, d_in), both float64.
        x: (batch, d_in).
        n_before: batches they hold already.
    """
    x = x.to(mean.dtype)
    mean.lerp_(x.mean(0), 1 / (n_before + 1))
    second.lerp_(x.T @ x / len(x), 1 / (n_before + 1))


def whitening_of(mean: torch.Tensor, second: torch.Tensor) -> Whitening:
    """The symmetric whitening (Σ + s I)^(−1/2), s = `SHRINKAGE` · tr Σ / d_in, times what gives z the norm √d_in.

    Args:
        mean: (d_in,) of x; second: (d_in, d_in), mean of x xᵀ.

    Returns:
        The whitening, in the dtype of ``mean``.
    """
    variances, directions = torch.linalg.eigh(second - torch.outer(mean, mean))
    variances = variances.clamp(min=0)
    shrunk = variances + SHRINKAGE * variances.mean()
    # With activations that do not vary there is nothing to whiten.
    if variances.mean() == 0:
        return Whitening(mean, torch.eye(len(mean), dtype=mean.dtype, device=mean.device))
    scale = (len(mean) / (variances / shrunk).sum()).sqrt()
    return Whitening(mean, scale * (directions * shrunk.rsqrt()) @ directions.T)


def first_encoder(decoder: torch.Tensor, whitening: Whitening) -> torch.Tensor:
    """An encoder to begin with: of each decoder row the whitened direction, Σ⁻¹ d in terms of x, of unit norm.

    Args:
        decoder: (d_sae, d_in).

    Returns:
        (d_in, d_sae), for whitened activations.
    """
    whitened = whitening.matrix @ decoder.T.to(whitening.matrix.dtype)
    return whitened / whitened.norm(dim=0, keepdim=True).clamp(min=torch.finfo(whitened.dtype).tiny)


def change_coordinates(
    encoder: torch.Tensor, bias: torch.Tensor, old: Whitening, new: Whitening
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder (d_in, d_sae) and bias (d_sae,) with the pre-activations under ``new`` that they had under ``old``."""
    in_x = old.matrix @ encoder.to(old.matrix.dtype)
    return torch.linalg.solve(new.matrix, in_x), bias + (new.mean - old.mean) @ in_x


def unwhitened(encoder: torch.Tensor, bias: torch.Tensor, whitening: Whitening) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder (d_in, d_sae) and bias (d_sae,) with the same pre-activations from x itself."""
    in_x = whitening.matrix @ encoder.to(whitening.matrix.dtype)
    return in_x, bias - whitening.mean @ in_x
