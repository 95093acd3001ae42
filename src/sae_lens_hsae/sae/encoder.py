"""The encoder of all levels, as what asks for the pre-activations of a few features reads it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Encoder(NamedTuple):
    """The parameters behind the pre-activations, (x − b_l) W + b_enc."""

    W_enc: torch.Tensor  # (d_in, n_features)
    b_enc: torch.Tensor  # (n_features,)
    b_dec: torch.Tensor | None  # b_l of every level, (L, d_in); None where the input is x itself

    def pre_activations(self, features: torch.Tensor, level: int, x: torch.Tensor) -> torch.Tensor:
        """Of some features of one level: (batch, d_in) → (batch, n)."""
        shifted = x if self.b_dec is None else x - self.b_dec[level]
        return shifted @ self.W_enc[:, features] + self.b_enc[features]
