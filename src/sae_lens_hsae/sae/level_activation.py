"""From pre-activations to activations: the encoder, and the rules that make features active, JumpReLU and BatchTopK."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch


class Encoder(NamedTuple):
    """The parameters behind the pre-activations, (x − b_l) W + b_enc."""

    W_enc: torch.Tensor  # (d_in, n_features)
    b_enc: torch.Tensor  # (n_features,)
    b_dec: torch.Tensor | None  # b_l of every level, (L, d_in); None where the input is x itself

    def input_of(self, level: int, x: torch.Tensor) -> torch.Tensor:
        """What a level's columns multiply, x − b_l or x: (batch, d_in) → (batch, d_in)."""
        return x if self.b_dec is None else x - self.b_dec[level]


class PreActivations(NamedTuple):
    """Pre-activations of a batch, without gradient, in the parts they are made of."""

    product: torch.Tensor  # (n_features, batch)
    bias: torch.Tensor  # to be added, (n_features,)

    def above(self, limit: torch.Tensor) -> torch.Tensor:
        """Where they are above a limit, () or (n_features,): (n_features, batch) bool."""
        return self.product > (limit - self.bias)[:, None]

    def of(self, level: slice) -> PreActivations:
        """Those of one level."""
        return PreActivations(self.product[level], self.bias[level])

    def dense(self) -> torch.Tensor:
        """(batch, n_features)."""
        return (self.product + self.bias[:, None]).T


class Activated(NamedTuple):
    """Activations, and 1 where they are active and 0 elsewhere, both of the same shape and with their gradients."""

    values: torch.Tensor
    fired: torch.Tensor


class LevelActivation(Protocol):
    """A rule by which pre-activations of all levels become activations."""

    def found(self, pre: PreActivations) -> torch.Tensor:
        """Where there can be value or gradient, (n_features, batch) bool."""
        ...

    def at(self, pre: torch.Tensor, features: torch.Tensor) -> Activated:
        """Of pre-activations where there can be value or gradient, (n,), and whose they are, (n,) int32."""
        ...

    def of_all(self, hidden_pre: torch.Tensor) -> Activated:
        """Of all pre-activations, (batch, n_features)."""
        ...
