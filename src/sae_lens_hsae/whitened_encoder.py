"""A stack of levels whose encoder learns in whitened coordinates: what it keeps, and when the coordinates change."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from sae_lens_hsae.encoder_whitening import (
    REFINED_AT,
    Whitening,
    change_coordinates,
    first_encoder,
    follow_moments,
    unwhitened,
    whitening_of,
)
from sae_lens_hsae.hierarchical_sae import LevelStack


class WhitenedEncoder(LevelStack):
    """Mixed in before SAELens' training class; without ``cfg.whiten_encoder`` it changes nothing.

    With it ``W_enc`` and ``b_enc`` are in whitened coordinates, z = (x − ``whitening_mean``) @ ``whitening_matrix``,
    which come from the running means ``moment_1`` (d_in,) and ``moment_2`` (d_in, d_in).
    """

    whitening_mean: torch.Tensor
    whitening_matrix: torch.Tensor
    moment_1: torch.Tensor
    moment_2: torch.Tensor

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if not self.cfg.whiten_encoder:
            return
        d_in = self.cfg.d_in
        kind: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        self.register_buffer("whitening_mean", torch.zeros(d_in, **kind))
        self.register_buffer("whitening_matrix", torch.eye(d_in, **kind))
        # A covariance is a small difference of large moments.
        exact: dict[str, Any] = kind | {"dtype": torch.float32 if self.device.type == "mps" else torch.float64}
        self.register_buffer("moment_1", torch.zeros(d_in, **exact))
        self.register_buffer("moment_2", torch.zeros(d_in, d_in, **exact))

    @property
    @override
    def exact_tensors(self) -> tuple[str, ...]:
        whitening = ("whitening_mean", "whitening_matrix", "moment_1", "moment_2") if self.cfg.whiten_encoder else ()
        return (*super().exact_tensors, *whitening)

    def moments(self) -> list[torch.Tensor]:
        """The moments of x, as far as they are followed."""
        return [self.moment_1, self.moment_2] if self.cfg.whiten_encoder else []

    @property
    def whitening(self) -> Whitening:
        """From activations as they are to what the encoder reads."""
        return Whitening(self.whitening_mean, self.whitening_matrix)

    def whitening_is_due(self, step: int) -> bool:
        """Whether a training step begins by making the whitening anew."""
        return self.cfg.whiten_encoder and step in REFINED_AT

    @torch.no_grad()
    def refine_whitening(self, step: int) -> None:
        """Make the whitening anew from the moments, and say in its coordinates what the encoder has learned."""
        old, new = self.whitening, whitening_of(self.moment_1, self.moment_2)
        if step == REFINED_AT[0]:
            # Hardly anything has been learned by then that would be lost.
            encoder, bias = first_encoder(self.W_dec, new), torch.zeros_like(self.b_enc)
            self.b_dec.data.copy_(new.mean.expand_as(self.b_dec))
        else:
            encoder, bias = change_coordinates(self.W_enc, self.b_enc, Whitening(*(t.to(new.mean) for t in old)), new)
        self.W_enc.data.copy_(encoder)
        self.b_enc.data.copy_(bias)
        self.whitening_mean.copy_(new.mean)
        self.whitening_matrix.copy_(new.matrix)

    @torch.no_grad()
    def follow_whitening(self, x: torch.Tensor, step: int) -> None:
        """Take a batch (batch, d_in) into the moments, as long as they are read again."""
        if self.cfg.whiten_encoder and step < REFINED_AT[-1]:
            follow_moments(self.moment_1, self.moment_2, x, step)

    @override
    def process_sae_in(self, sae_in: torch.Tensor) -> torch.Tensor:
        """What the encoder reads: activations as `LevelStack` prepares them, whitened if the encoder is."""
        sae_in = super().process_sae_in(sae_in)
        if not self.cfg.whiten_encoder:
            return sae_in
        with torch.autocast(sae_in.device.type, enabled=False):
            mean, matrix = self.whitening
            exact = torch.promote_types(sae_in.dtype, matrix.dtype)
            return ((sae_in.to(exact) - mean) @ matrix.to(exact)).to(sae_in.dtype)

    @override
    @torch.no_grad()
    def encoder(self, features: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        weights, bias = super().encoder(features)
        if not self.cfg.whiten_encoder:
            return weights, bias
        weights, bias = unwhitened(weights, bias, self.whitening)
        return weights.to(self.dtype), bias.to(self.dtype)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        if self.cfg.whiten_encoder:
            self.whitening_mean.div_(scaling_factor)
