"""Activations in the coordinates in which HSAE trains by default, for the SAEs it is compared with.

There the mean of the ordinary tokens is the origin, and their median distance from it is √d_in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from sae_lens.saes.sae import TrainingSAE

from sae_lens_hsae.evaluation.outliers import usual

SEEN = 16_384
"""Tokens that the coordinates are estimated from: as many as HSAE observes before it trains, at 1,024 in a batch."""


class Coordinates(NamedTuple):
    """x ↦ (x − centre) · factor."""

    centre: torch.Tensor  # (d_in,)
    factor: float

    @classmethod
    def of(cls, x: torch.Tensor) -> Coordinates:
        """Of a stream of activations, (tokens, d_in), by its first `SEEN`."""
        seen = x[:SEEN].float()
        centre = seen[usual(seen).holds(seen)].mean(0)
        return cls(centre, math.sqrt(x.shape[1]) / (seen - centre).norm(dim=1).median().item())

    def into(self, x: torch.Tensor) -> torch.Tensor:
        """Activations (tokens, d_in) in these coordinates."""
        return (x - self.centre) * self.factor

    @torch.no_grad()
    def fold(self, sae: TrainingSAE) -> None:
        """Make an SAE trained in these coordinates one that reads activations as they are."""
        assert sae.cfg.apply_b_dec_to_input
        sae.fold_activation_norm_scaling_factor(self.factor)
        sae.b_dec.data.add_(self.centre)
