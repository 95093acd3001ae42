"""Standardized activations: a training observes its first batches, and then trains on x̃ (`input_statistics`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.input_statistics import (
    OBSERVED_STEPS,
    Moments,
    Statistics,
    follow_moments,
    for_scaled,
    matched_filters,
    statistics_of,
    weights_of,
)


class StandardizedInput(nn.Module):
    """What parameters and losses of a training read of activations.

    With ``cfg.whiten_encoder`` or ``cfg.outlier_limit`` the first steps only observe. From then on parameters and
    losses are those of x̃ = ``input_scale`` · x, and with ``cfg.whiten_encoder`` ``W_enc`` and ``b_enc`` read
    z = (x̃ − ``input_mean``) @ ``whitening_matrix``. Without either field there are no tensors, and x̃ and z are x.

    Attributes:
        is_on: whether there is anything to do.
    """

    input_scale: torch.Tensor
    input_mean: torch.Tensor
    whitening_matrix: torch.Tensor
    moments_centre: torch.Tensor
    moments_distance: torch.Tensor
    moments_weight: torch.Tensor
    moments_first: torch.Tensor
    moments_second: torch.Tensor

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        self.is_on = cfg.whiten_encoder or cfg.outlier_limit is not None
        if not self.is_on:
            return
        d_in = cfg.d_in
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.register_buffer("input_scale", torch.ones((), **kind))
        self.register_buffer("input_mean", torch.zeros(d_in, **kind))
        self.register_buffer("whitening_matrix", torch.eye(d_in, **kind))
        # A covariance is a small difference of large moments.
        exact: dict[str, Any] = kind | {"dtype": torch.float32 if device.type == "mps" else torch.float64}
        self.register_buffer("moments_centre", torch.zeros(d_in, **exact))
        self.register_buffer("moments_distance", torch.zeros((), **exact))
        self.register_buffer("moments_weight", torch.zeros((), **exact))
        self.register_buffer("moments_first", torch.zeros(d_in, **exact))
        self.register_buffer("moments_second", torch.zeros(d_in, d_in, **exact))

    def running_means(self) -> list[torch.Tensor]:
        """The moments of x, as far as they are followed."""
        return [*self._moments()] if self.is_on else []

    def _moments(self) -> Moments:
        return Moments(
            self.moments_centre, self.moments_distance, self.moments_weight, self.moments_first, self.moments_second
        )

    @property
    def statistics(self) -> Statistics:
        """From activations as they are to what the levels reconstruct and what the encoder reads."""
        return Statistics(self.input_scale, self.input_mean, self.whitening_matrix)

    def is_observing(self, step: int) -> bool:
        """Whether a training step only takes its batch into the statistics."""
        return self.is_on and step < OBSERVED_STEPS

    def is_due(self, step: int) -> bool:
        """Whether a training step begins by making the statistics of what was observed."""
        return self.is_on and step == OBSERVED_STEPS

    @torch.no_grad()
    def observe(self, x: torch.Tensor, step: int) -> None:
        """Take a batch (batch, d_in) into the moments."""
        follow_moments(self._moments(), x, self._cfg.outlier_limit, step)

    @torch.no_grad()
    def begin(self, W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor) -> None:
        """Make the statistics from the moments, and begin from them: b_dec at the mean, encoders as matched filters.

        Args:
            W_enc: (d_in, d_sae), b_enc: (d_sae,), b_dec: (L, d_in); written in place.
            W_dec: (d_sae, d_in).
        """
        statistics = statistics_of(self._moments())
        self.input_scale.copy_(statistics.scale)
        self.input_mean.copy_(statistics.mean)
        b_dec.copy_(statistics.mean.expand_as(b_dec))
        if self._cfg.whiten_encoder:
            self.whitening_matrix.copy_(statistics.matrix)
            W_enc.copy_(matched_filters(W_dec, statistics.matrix))
            b_enc.zero_()

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """x̃, which the levels reconstruct."""
        return (x * self.input_scale).to(x.dtype) if self.is_on else x

    def token_weights(self, scaled: torch.Tensor) -> torch.Tensor | None:
        """How much each token of x̃ (batch, d_in) counts in losses and L0, (batch,); None where all count alike."""
        if self._cfg.outlier_limit is None:
            return None
        exact = torch.promote_types(scaled.dtype, torch.float32)
        distance = (scaled.to(exact) - self.input_mean).norm(dim=-1)
        return weights_of(distance, self._cfg.outlier_limit * self._cfg.d_in**0.5)

    def read_by_encoder(self, x: torch.Tensor) -> torch.Tensor:
        """z, which the encoder reads; x̃ where it is not whitened."""
        scaled = self.scaled(x)
        if not self._cfg.whiten_encoder:
            return scaled
        with torch.autocast(scaled.device.type, enabled=False):
            exact = torch.promote_types(scaled.dtype, self.whitening_matrix.dtype)
            matrix = self.whitening_matrix.to(exact)
            return ((scaled.to(exact) - self.input_mean) @ matrix).to(scaled.dtype)

    def in_units_of_x(self, values: torch.Tensor) -> torch.Tensor:
        """Activations, thresholds, biases or reconstructions of x̃ as those of x."""
        return (values / self.input_scale).to(values.dtype) if self.is_on else values

    @torch.no_grad()
    def encoder_of_x(self, weights: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns (d_in, n) and biases (n,) of the encoder as ones that read x."""
        dtype = weights.dtype
        if self._cfg.whiten_encoder:
            weights, bias = for_scaled(weights, bias, self.statistics)
        return weights.to(dtype), self.in_units_of_x(bias).to(dtype)
