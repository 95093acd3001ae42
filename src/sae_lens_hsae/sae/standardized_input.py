"""A stack of levels that observes its activations first and then trains on them standardized (`input_statistics`)."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from sae_lens_hsae.sae.inference import LevelStack
from sae_lens_hsae.sae.input_statistics import (
    OBSERVED_STEPS,
    STATISTICS,
    Moments,
    Statistics,
    follow_moments,
    for_scaled,
    matched_filters,
    statistics_of,
    weights_of,
)


class StandardizedInput(LevelStack):
    """Mixed in before SAELens' training class.

    With ``cfg.whiten_encoder`` or ``cfg.outlier_limit`` the first steps of a training observe. From then on parameters
    and losses are those of x̃ = ``input_scale`` · x, and with ``cfg.whiten_encoder`` ``W_enc`` and ``b_enc`` read
    z = (x̃ − ``input_mean``) @ ``whitening_matrix``. ``encode``, ``decode`` and what is saved for inference are in the
    units of x all the same. Without either field nothing changes.
    """

    input_scale: torch.Tensor
    input_mean: torch.Tensor
    whitening_matrix: torch.Tensor
    moments_centre: torch.Tensor
    moments_distance: torch.Tensor
    moments_weight: torch.Tensor
    moments_first: torch.Tensor
    moments_second: torch.Tensor

    @property
    def is_standardized(self) -> bool:
        """Whether the first steps observe, and the others train on standardized activations."""
        return self.cfg.whiten_encoder or self.cfg.outlier_limit is not None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if not self.is_standardized:
            return
        d_in = self.cfg.d_in
        kind: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        self.register_buffer("input_scale", torch.ones((), **kind))
        self.register_buffer("input_mean", torch.zeros(d_in, **kind))
        self.register_buffer("whitening_matrix", torch.eye(d_in, **kind))
        # A covariance is a small difference of large moments.
        exact: dict[str, Any] = kind | {"dtype": torch.float32 if self.device.type == "mps" else torch.float64}
        for name, shape in zip(Moments._fields, ((d_in,), (), (), (d_in,), (d_in, d_in)), strict=True):
            self.register_buffer(f"moments_{name}", torch.zeros(shape, **exact))

    @property
    @override
    def exact_tensors(self) -> tuple[str, ...]:
        if not self.is_standardized:
            return super().exact_tensors
        moments = (f"moments_{name}" for name in Moments._fields)
        return (*super().exact_tensors, *STATISTICS, *moments)

    def moments(self) -> list[torch.Tensor]:
        """The moments of x, as far as they are followed."""
        return [*self._moments()] if self.is_standardized else []

    def _moments(self) -> Moments:
        return Moments(*(getattr(self, f"moments_{name}") for name in Moments._fields))

    @property
    def statistics(self) -> Statistics:
        """From activations as they are to what the levels reconstruct and what the encoder reads."""
        return Statistics(self.input_scale, self.input_mean, self.whitening_matrix)

    def is_observing(self, step: int) -> bool:
        """Whether a training step only takes its batch into the statistics."""
        return self.is_standardized and step < OBSERVED_STEPS

    def statistics_are_due(self, step: int) -> bool:
        """Whether a training step begins by making the statistics of what was observed."""
        return self.is_standardized and step == OBSERVED_STEPS

    @torch.no_grad()
    def observe(self, x: torch.Tensor, step: int) -> None:
        """Take a batch (batch, d_in) into the moments."""
        follow_moments(self._moments(), x, self.cfg.outlier_limit, step)

    @torch.no_grad()
    def standardize(self) -> None:
        """Make the statistics from the moments, and begin from them: b_dec at the mean, encoders as matched filters."""
        statistics = statistics_of(self._moments())
        self.input_scale.copy_(statistics.scale)
        self.input_mean.copy_(statistics.mean)
        self.b_dec.data.copy_(statistics.mean.expand_as(self.b_dec))
        if self.cfg.whiten_encoder:
            self.whitening_matrix.copy_(statistics.matrix)
            self.W_enc.data.copy_(matched_filters(self.W_dec, statistics.matrix))
            self.b_enc.data.zero_()

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """x̃, which the levels reconstruct."""
        return (x * self.input_scale).to(x.dtype) if self.is_standardized else x

    def token_weights(self, scaled: torch.Tensor) -> torch.Tensor | None:
        """How much each token of x̃ (batch, d_in) counts in losses and L0, (batch,); None where all count alike."""
        if self.cfg.outlier_limit is None:
            return None
        exact = torch.promote_types(scaled.dtype, torch.float32)
        distance = (scaled.to(exact) - self.input_mean).norm(dim=-1)
        return weights_of(distance, self.cfg.outlier_limit * self.cfg.d_in**0.5)

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        """What the encoder reads of activations as they are: x̃, whitened if the encoder is."""
        scaled = self.scaled(super().process_sae_in(sae_in))
        if not self.cfg.whiten_encoder:
            return scaled
        with torch.autocast(scaled.device.type, enabled=False):
            exact = torch.promote_types(scaled.dtype, self.whitening_matrix.dtype)
            matrix = self.whitening_matrix.to(exact)
            return ((scaled.to(exact) - self.input_mean) @ matrix).to(scaled.dtype)

    def in_units_of_x(self, values: torch.Tensor) -> torch.Tensor:
        """Activations, thresholds, biases or reconstructions of x̃ as those of x."""
        return (values / self.input_scale).to(values.dtype) if self.is_standardized else values

    @override
    @torch.no_grad()
    def encoder(self, features: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        weights, bias = super().encoder(features)
        if self.cfg.whiten_encoder:
            weights, bias = for_scaled(weights, bias, self.statistics)
        return weights.to(self.dtype), self.in_units_of_x(bias).to(self.dtype)

    @override
    def thresholds(self, features: slice = slice(None)) -> torch.Tensor:
        return self.in_units_of_x(super().thresholds(features))

    @override
    def decoder_biases(self) -> torch.Tensor:
        return self.in_units_of_x(super().decoder_biases())

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        if not self.is_standardized:
            super().fold_activation_norm_scaling_factor(scaling_factor)
            return
        self.check_scaling_factor(scaling_factor)
        self.input_scale.mul_(scaling_factor)
        self.cfg.normalize_activations = "none"
