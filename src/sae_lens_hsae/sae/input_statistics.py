"""Statistics of the activations, taken before training, that a few outlying tokens cannot spoil (not in the paper).

Language models have attention sinks: a token in a thousand, ten to a thousand times as large as the others. They own
the mean norm, the covariance, and the squared error of a batch. Three things keep them from owning the training too:

- activations are scaled by the *median* distance from their centre, so that a typical one has norm √d;
- a token further away than `limit` times that distance counts less: w = min(1, (limit · median / distance)²), in the
  moments here, and in losses and L0 during training. Its squared error then weighs no more than that of a token at
  the limit;
- the encoder reads whitened activations, (x − μ) Σ^(−1/2), with weighted μ and Σ. What best tells a rare concept from
  all others is not its direction d but Σ⁻¹ d, which a gradient reaches slowly where activations vary a thousandfold
  more along some directions than along others. In whitened coordinates that is its start. Reconstructions stay those
  of x, and the whitening is folded into the encoder when the model is saved. SAELens' ``covariance_whitening`` and
  arXiv 2511.13981 whiten the target of the reconstruction as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

OBSERVED_STEPS = 16
"""Steps at the start of a training that only observe: their batches make the statistics, and no parameter moves."""

SHRINKAGE = 0.1
"""Share of the mean variance that is added along every direction: those that hardly vary are not blown up."""


class Moments(NamedTuple):
    """Means over the batches observed so far, float64.

    Attributes:
        centre: coordinate-wise medians of the batches, (d_in,).
        distance: medians of ‖x − centre‖, ().
        weight: of the tokens' weights w, ().
        first: of w x, (d_in,).
        second: of w x xᵀ, (d_in, d_in).
    """

    centre: torch.Tensor
    distance: torch.Tensor
    weight: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


STATISTICS = ("input_scale", "input_mean", "whitening_matrix")
"""Under which names a training SAE keeps its `Statistics`, in float32."""


class Statistics(NamedTuple):
    """What training reads activations by: x̃ = scale · x is what the levels reconstruct, z = (x̃ − mean) @ matrix is what
    their encoder reads.

    Attributes:
        scale: brings the median of ‖x − centre‖ to √d_in, ().
        mean: weighted mean of x̃, (d_in,).
        matrix: the whitening, (d_in, d_in).
    """

    scale: torch.Tensor
    mean: torch.Tensor
    matrix: torch.Tensor


def weights_of(distance: torch.Tensor, limit: torch.Tensor | float) -> torch.Tensor:
    """min(1, (limit / distance)²), of the same shape as ``distance``."""
    return torch.where(distance <= limit, 1, limit / distance).square()


def follow_moments(moments: Moments, x: torch.Tensor, limit: float | None, n_before: int) -> None:
    """Take one more batch into the moments, in place.

    Args:
        moments: of the batches before.
        x: (batch, d_in).
        limit: distance, in medians, beyond which tokens count less; None counts all alike.
        n_before: batches the moments hold already.
    """
    x = x.to(moments.first.dtype)
    share = 1 / (n_before + 1)
    moments.centre.lerp_(x.median(0).values, share)
    distance = (x - moments.centre).norm(dim=1)
    moments.distance.lerp_(distance.median(), share)
    weights = torch.ones_like(distance) if limit is None else weights_of(distance, limit * moments.distance)
    moments.weight.lerp_(weights.mean(), share)
    weighted = weights[:, None] * x
    moments.first.lerp_(weighted.mean(0), share)
    moments.second.lerp_(weighted.T @ x / len(x), share)


def statistics_of(moments: Moments) -> Statistics:
    """Scale, mean and whitening (Σ + s I)^(−1/2), s = `SHRINKAGE` · tr Σ / d_in, times what gives z the norm √d_in.

    Activations that do not vary are left as they are.
    """
    d_in = len(moments.first)
    one = torch.ones_like(moments.distance)
    scale = d_in**0.5 / moments.distance if moments.distance > 0 else one
    mean = moments.first / moments.weight
    variances, directions = torch.linalg.eigh(moments.second / moments.weight - torch.outer(mean, mean))
    variances = variances.clamp(min=0)
    if variances.mean() == 0:
        identity = torch.eye(d_in, dtype=mean.dtype, device=mean.device)
        return Statistics(scale, scale * mean, identity)
    shrunk = variances + SHRINKAGE * variances.mean()
    to_norm = (d_in / (variances / shrunk).sum()).sqrt()
    # Of x̃ = scale · x the covariance is scale² Σ.
    return Statistics(scale, scale * mean, to_norm / scale * (directions * shrunk.rsqrt()) @ directions.T)


def matched_filters(decoder: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """An encoder to begin with: of each decoder row the whitened direction, Σ⁻¹ d in terms of x, of unit norm.

    Args:
        decoder: (d_sae, d_in).
        matrix: the whitening, (d_in, d_in).

    Returns:
        (d_in, d_sae), for whitened activations.
    """
    whitened = matrix @ decoder.T.to(matrix.dtype)
    return whitened / whitened.norm(dim=0, keepdim=True).clamp(min=torch.finfo(whitened.dtype).tiny)


def for_scaled(encoder: torch.Tensor, bias: torch.Tensor, statistics: Statistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder (d_in, n) and bias (n,) that have from x̃ the pre-activations that the given ones have from z."""
    # In float64, so that a level by itself gets the same numbers as among all levels.
    in_x = statistics.matrix.double() @ encoder.double()
    return in_x, bias.double() - statistics.mean.double() @ in_x
