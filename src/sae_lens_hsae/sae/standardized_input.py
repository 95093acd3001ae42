"""Standardized activations: a training observes its first batches, and then trains on x̃ (not in the paper).

Language models have attention sinks: a token in a thousand, ten to a thousand times as large as the others. They own
the mean norm and the squared error of a batch. Two things keep them from owning the training too:

- activations are scaled by the *median* distance from their centre, so that a typical one has norm √d;
- a token further from the mean than ``cfg.outlier_limit`` times that distance counts less, in losses and L0:
  w = min(1, (limit · median / distance)²). Its squared error then weighs no more than that of a token at the limit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.config_checks import OBSERVED_STEPS

INPUT_SCALE = "input_scale"
"""Under which name a training SAE keeps the factor of its activations, in float32."""


class Moments(NamedTuple):
    """Means over the batches observed so far."""

    centre: torch.Tensor  # coordinate-wise medians of the batches, (d_in,)
    distance: torch.Tensor  # medians of ‖x − centre‖, ()
    weight: torch.Tensor  # of the tokens' weights w, ()
    first: torch.Tensor  # of w x, (d_in,)


def weights_of(distance: torch.Tensor, limit: torch.Tensor | float) -> torch.Tensor:
    """min(1, (limit / distance)²), of the same shape as ``distance``."""
    return torch.where(distance <= limit, 1, limit / distance).square()


def follow_moments(moments: Moments, x: torch.Tensor, limit: float, n_before: int) -> None:
    """Take a batch (batch, d_in) into the moments, in place; beyond ``limit`` medians its tokens count less."""
    x = x.to(moments.first.dtype)
    share = 1 / (n_before + 1)
    moments.centre.lerp_(x.median(0).values, share)
    distance = (x - moments.centre).norm(dim=1)
    moments.distance.lerp_(distance.median(), share)
    weights = weights_of(distance, limit * moments.distance)
    moments.weight.lerp_(weights.mean(), share)
    moments.first.lerp_((weights[:, None] * x).mean(0), share)


class StandardizedInput(nn.Module):
    """What parameters and losses of a training read of activations.

    With ``cfg.outlier_limit`` the first steps only observe. From then on parameters and losses are those of
    x̃ = ``input_scale`` · x. Without it there are no tensors, and x̃ is x.
    """

    input_scale: torch.Tensor
    input_mean: torch.Tensor
    moments_centre: torch.Tensor
    moments_distance: torch.Tensor
    moments_weight: torch.Tensor
    moments_first: torch.Tensor

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        self.is_on = cfg.outlier_limit is not None
        if not self.is_on:
            return
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.register_buffer(INPUT_SCALE, torch.ones((), **kind))
        self.register_buffer("input_mean", torch.zeros(cfg.d_in, **kind))
        # In float32 on every device: an Apple GPU, to which an SAE may be moved, has no float64.
        self.register_buffer("moments_centre", torch.zeros(cfg.d_in, **kind))
        self.register_buffer("moments_distance", torch.zeros((), **kind))
        self.register_buffer("moments_weight", torch.zeros((), **kind))
        self.register_buffer("moments_first", torch.zeros(cfg.d_in, **kind))

    def running_means(self) -> list[torch.Tensor]:
        """The moments of x, as far as they are followed."""
        return [*self._moments()] if self.is_on else []

    def _moments(self) -> Moments:
        return Moments(self.moments_centre, self.moments_distance, self.moments_weight, self.moments_first)

    @property
    def n_observed(self) -> int:
        return OBSERVED_STEPS if self.is_on else 0

    def is_observing(self, step: int) -> bool:
        """Whether a training step only takes its batch into the moments."""
        return step < self.n_observed

    def is_due(self, step: int) -> bool:
        """Whether a training step begins by making scale and mean of what was observed."""
        return self.is_on and step == OBSERVED_STEPS

    @torch.no_grad()
    def observe(self, x: torch.Tensor, step: int) -> None:
        """Take a batch (batch, d_in) into the moments."""
        assert self._cfg.outlier_limit is not None
        follow_moments(self._moments(), x, self._cfg.outlier_limit, step)

    @torch.no_grad()
    def begin(self, b_dec: torch.Tensor) -> None:
        """Make scale and weighted mean from the moments; every level's b_dec (L, d_in) begins at the mean.

        Activations that do not vary keep their scale.
        """
        distance = self.moments_distance
        scale = self._cfg.d_in**0.5 / distance if distance > 0 else torch.ones_like(distance)
        self.input_scale.copy_(scale)
        self.input_mean.copy_(scale * self.moments_first / self.moments_weight)
        b_dec.copy_(self.input_mean.expand_as(b_dec))

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """x̃, which the encoder reads and the levels reconstruct."""
        return (x * self.input_scale).to(x.dtype) if self.is_on else x

    def token_weights(self, scaled: torch.Tensor) -> torch.Tensor | None:
        """How much each token of x̃ (batch, d_in) counts in losses and L0, (batch,); None where all count alike."""
        if self._cfg.outlier_limit is None:
            return None
        exact = torch.promote_types(scaled.dtype, torch.float32)
        distance = (scaled.to(exact) - self.input_mean).norm(dim=-1)
        return weights_of(distance, self._cfg.outlier_limit * self._cfg.d_in**0.5)

    def in_units_of_x(self, values: torch.Tensor) -> torch.Tensor:
        """Activations, thresholds, biases or reconstructions of x̃ as those of x."""
        return (values / self.input_scale).to(values.dtype) if self.is_on else values
