"""The activations of a batch as their active entries: the few (token, feature) that carry value or gradient.

JumpReLU's value lives where a pre-activation exceeds its threshold θ, its straight-through gradient within half a
bandwidth ε of θ. Everything above θ − ε/2 is therefore an *entry*, and no loss nor gradient depends on the rest: of
wide levels that leaves a few in a hundred. The encoder product finds them, and all that follows is done on them alone.
:class:`DenseActivations` is the plain form of the same; the two have the same values and gradients.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sae_lens.saes.jumprelu_sae import JumpReLU, Step

from sae_lens_hsae.levels import Levels
from sae_lens_hsae.perturbation import Replacement
from sae_lens_hsae.row_products import sum_rows
from sae_lens_hsae.structural_loss import Families, entries_structural_loss

MAX_DENSITY = 0.15
"""Above this share of entries the dense products are the faster ones."""


class Encoder(NamedTuple):
    """The parameters behind the pre-activations: (x − b_l) W + b_enc; ``b_dec`` is None where the input is x itself."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor | None


class ActiveEntries:
    """What training asks of the activations of a batch, from their active entries.

    Attributes:
        tokens, features: of each entry, ordered by level, token and feature; (n,) int64.
        values: its activation, which is 0 between θ − ε/2 and θ; (n,).
    """

    def __init__(
        self,
        found: torch.Tensor,
        x: torch.Tensor,
        hidden_pre: torch.Tensor,
        encoder: Encoder,
        threshold: torch.Tensor,
        levels: Levels,
        bandwidth: float,
        ste_to_input: bool,
    ) -> None:
        """Gather the entries.

        Args:
            found: where they are, (batch, n_features) bool.
            x: what the encoder read, (batch, d_in).
            hidden_pre: pre-activations, (batch, n_features); no gradient flows through it.
            encoder: the gradient's way to the parameters.
            threshold: θ, (n_features,).
            levels: of the features.
            bandwidth: ε; ste_to_input: whether the estimator's gradient reaches the pre-activations.
        """
        self.shape, self.levels = hidden_pre.shape, levels
        places = [torch.nonzero(own).unbind(1) for own in levels.split(found)]
        self._n_entries = [len(tokens) for tokens, _ in places]
        self.tokens = torch.cat([tokens for tokens, _ in places])
        self._local_features = torch.cat([features for _, features in places])
        self.features = torch.cat([features + own.start for own, (_, features) in zip(levels, places, strict=True)])
        self._places = self.tokens * self.shape[1] + self.features
        pre = _PreActivations.apply(*encoder, x, hidden_pre.detach(), self.tokens, self.features, levels)
        # SAELens' functions sum a threshold's gradient over the first dimension: it has length 1 here.
        own_threshold = threshold.index_select(0, self.features)
        self.values = JumpReLU.apply(pre.unsqueeze(0), own_threshold, bandwidth, ste_to_input).squeeze(0)
        self._fired = Step.apply(pre.unsqueeze(0), own_threshold, bandwidth, ste_to_input).squeeze(0)

    def dense(self) -> torch.Tensor:
        """(batch, n_features), outside of the gradient's graph."""
        values = self.values.detach()
        return values.new_zeros(self.shape.numel()).index_copy_(0, self._places, values).view(self.shape)

    def l0(self) -> torch.Tensor:
        """Mean L0 of every level, (L,), with the straight-through gradient of JumpReLU."""
        return torch.stack([own.sum() for own in self._fired.split(self._n_entries)]) / self.shape[0]

    def reconstruct(self, W_dec: torch.Tensor, b_dec: torch.Tensor) -> list[torch.Tensor]:
        """Reconstruction of every level, each (batch, d_in)."""
        entries = (tensor.split(self._n_entries) for tensor in (self.values, self._local_features, self.tokens))
        per_level = zip(*entries, W_dec.split(self.levels.widths), b_dec, strict=True)
        return [
            sum_rows(values, rows, features, tokens, self.shape[0]) + bias
            for values, features, tokens, rows, bias in per_level
        ]

    def replacement_delta(self, W_dec: torch.Tensor, replacement: Replacement) -> torch.Tensor:
        """What a replacement adds to its level's reconstruction, (batch, d_in)."""
        index = torch.arange(len(replacement.features), device=W_dec.device)
        row = torch.full((self.shape[1],), -1, device=W_dec.device).index_copy(0, replacement.features, index)
        row = row.index_select(0, self.features)
        involved = torch.nonzero(row >= 0).squeeze(1)
        row = row.index_select(0, involved)
        weights = self.values.index_select(0, involved) * replacement.signs.to(W_dec.dtype).index_select(0, row)
        rows = W_dec.index_select(0, replacement.features)
        return sum_rows(weights, rows, row, self.tokens.index_select(0, involved), self.shape[0])

    def structural_loss(self, W_dec: torch.Tensor, families: Families) -> torch.Tensor:
        """Σ_l Σ_i L_PC,(l,i), mean over the batch."""
        return entries_structural_loss(self.values, self.tokens, self.features, W_dec, families.parents, self.shape[0])


class _PreActivations(torch.autograd.Function):
    """Takes pre-activations at the entries, and leads their gradient to the encoder's parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        W_enc: torch.Tensor,
        _b_enc: torch.Tensor,
        b_dec: torch.Tensor | None,
        x: torch.Tensor,
        hidden_pre: torch.Tensor,
        tokens: torch.Tensor,
        features: torch.Tensor,
        levels: Levels,
    ) -> torch.Tensor:
        ctx.save_for_backward(W_enc, b_dec, x, tokens, features)
        ctx.levels = levels
        return hidden_pre.view(-1).index_select(0, tokens * hidden_pre.shape[1] + features)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        W_enc, b_dec, x, tokens, features = ctx.saved_tensors
        of_pre = grads[0]
        of_b_enc = of_pre.new_zeros(W_enc.shape[1]).index_add_(0, features, of_pre)
        of_W_enc = sum_rows(of_pre, x, tokens, features, W_enc.shape[1])
        of_b_dec = None
        if b_dec is not None:
            per_level = list(zip(of_b_enc.split(ctx.levels.widths), b_dec, strict=True))
            for rows, (own, bias) in zip(of_W_enc.split(ctx.levels.widths), per_level, strict=True):
                rows.addr_(own, bias, alpha=-1)
            of_b_dec = -torch.stack(
                [columns @ own for columns, (own, _) in zip(ctx.levels.split(W_enc), per_level, strict=True)]
            )
        return of_W_enc.T, of_b_enc, of_b_dec, None, None, None, None, None
