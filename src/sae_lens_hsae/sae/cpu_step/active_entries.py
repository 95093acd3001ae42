"""The activations of a batch as their active entries: the few (feature, token) that carry value or gradient.

Which they are the rule of activation says: with JumpReLU everything above θ − ε/2, as its value lives above the
threshold θ and its straight-through gradient within half a bandwidth ε of it; with BatchTopK what fires. No loss nor
gradient depends on the rest: of wide levels that leaves a few in a hundred. The encoder product finds them, and all
that follows is done on them alone.
`DenseActivations` is the plain form of the same; the two have the same values and gradients.

Entries are ordered by feature, so the product is made that way round, (n_features, batch): the gradients of encoder and
decoder are sums over one feature after the other, and what a step reads at a time, one decoder row and the tokens of
one level, stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sae_lens_hsae.forest.counts import Firing
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.cpu_step.row_products import sum_rows, sum_sorted_columns
from sae_lens_hsae.sae.level_activation import Encoder, LevelActivation, PreActivations
from sae_lens_hsae.sae.perturbation import Replacement
from sae_lens_hsae.sae.structural_loss import Families, entries_structural_loss

MAX_DENSITY = 0.35
"""Above this share of entries the dense products are the faster ones."""


class ActiveEntries:
    """What training asks of the activations of a batch, from their active entries, ordered by feature and token.

    Entry e is ``features[e]`` on ``tokens[e]``, both (n,) int32; its activation ``values[e]`` is 0 where it only
    carries a gradient.
    """

    def __init__(
        self,
        found: torch.Tensor,
        places: torch.Tensor,
        x: torch.Tensor,
        pre_activations: PreActivations,
        encoder: Encoder,
        activation: LevelActivation,
        levels: Levels,
    ) -> None:
        """Gather the entries, where ``found`` (n_features, batch) is true; ``places`` are its flat indices, ascending.

        No gradient flows through the pre-activations: ``encoder``, which has read x (batch, d_in), is its way to the
        parameters.
        """
        self.pre_activations, self.levels = pre_activations, levels
        self._found, self._places = found, places
        n_features, batch = found.shape
        self.features = (places // batch).int()
        self.tokens = (places - batch * self.features.long()).int()
        counts = torch.bincount(self.features, minlength=n_features)
        self._first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._n_entries = self._first[list(levels.offsets)].diff()
        # One sum per level and token.
        self._bags = self.tokens + torch.repeat_interleave(
            batch * torch.arange(len(levels), dtype=torch.int32), self._n_entries
        )
        pre = _PreActivationsAt.apply(*encoder, x, *pre_activations, places, self.features, self._bags, levels)
        self.values, self._fired = activation.at(pre, self.features)

    def dense(self) -> torch.Tensor:
        """(batch, n_features), outside of the gradient's graph."""
        values = self.values.detach()
        return values.new_zeros(self._found.numel()).index_copy_(0, self._places, values).view(self._found.shape).T

    def times_fired(self, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens on which each feature is active, (n_features,), of those that are counted, (batch,) bool, or all."""
        return torch.zeros(len(self._found)).index_add_(0, self.features, self._active(counted).float())

    def firing(self, step: int, counted: torch.Tensor | None = None) -> Firing:
        active = torch.nonzero(self._active(counted)).squeeze(1)
        features, tokens = self.features.index_select(0, active), self.tokens.index_select(0, active)
        return Firing.of_entries(features, tokens, self._found.shape, step)

    def _active(self, counted: torch.Tensor | None) -> torch.Tensor:
        active = self.values.detach() != 0
        return active if counted is None else active & counted.index_select(0, self.tokens)

    def l0(self, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean L0 of every level, (L,), of tokens with weights (batch,), with the gradient that the rule gives it."""
        fired, total = self._fired, self._found.shape[1]
        if weights is not None:
            fired, total = fired * weights.index_select(0, self.tokens), weights.sum()
        return torch.stack([own.sum() for own in fired.split(self._n_entries.tolist())]) / total

    def smallest(self) -> list[torch.Tensor]:
        """Smallest activation of every level, () each, without gradient; infinite where nothing is active."""
        per_level = self.values.detach().split(self._n_entries.tolist())
        return [torch.cat([own[own > 0], own.new_tensor([torch.inf])]).min() for own in per_level]

    def reconstruct(
        self, W_dec: torch.Tensor, b_dec: torch.Tensor, replaced: Sequence[Replacement] = ()
    ) -> torch.Tensor:
        """Reconstructions of all levels with the replacements, (L, batch, d_in)."""
        batch = self._found.shape[1]
        weights, features, bags = self.values, self.features, self._bags
        if any(len(change.features) for change in replaced):
            entries, signs, changed = self._changes(replaced)
            weights = torch.cat([weights, weights.index_select(0, entries) * signs.to(weights.dtype)])
            features = torch.cat([features, features.index_select(0, entries)])
            bags = torch.cat([bags, batch * changed + self.tokens.index_select(0, entries)])
        sums = sum_rows(weights, W_dec, features, bags, len(b_dec) * batch)
        return sums.view(len(b_dec), batch, -1) + b_dec[:, None]

    def _changes(self, replaced: Sequence[Replacement]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Entries of the features that are replaced or stand in, their signs, and the level each adds to; (n,) all."""
        features, signs = (torch.cat(tensors) for tensors in zip(*replaced, strict=True))
        sizes = torch.tensor([len(change.features) for change in replaced])
        levels = torch.repeat_interleave(torch.arange(len(replaced), dtype=torch.int32), sizes)
        first, stop = self._first[features], self._first[features + 1]
        row = torch.repeat_interleave(torch.arange(len(features)), stop - first)
        # Each row's entries follow one another; so does the count of those that came before.
        before = (stop - first).cumsum(0) - (stop - first)
        entries = torch.arange(len(row)) + (first - before).index_select(0, row)
        return entries, signs.index_select(0, row), levels.index_select(0, row)

    def structural_loss(
        self, W_dec: torch.Tensor, families: Families, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Σ_l Σ_i L_PC,(l,i), mean over the batch, of tokens with weights (batch,)."""
        values = self.values if weights is None else self.values * weights.sqrt().index_select(0, self.tokens)
        return entries_structural_loss(values, self._places, self.features, self._found, W_dec, families.parents)


class _PreActivationsAt(torch.autograd.Function):
    """Takes pre-activations at the entries, and leads their gradient to the encoder's parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        W_enc: torch.Tensor,
        _b_enc: torch.Tensor,
        b_dec: torch.Tensor | None,
        x: torch.Tensor,
        product: torch.Tensor,
        bias: torch.Tensor,
        places: torch.Tensor,
        features: torch.Tensor,
        bags: torch.Tensor,
        levels: Levels,
    ) -> torch.Tensor:
        ctx.save_for_backward(W_enc, b_dec, x, features, bags)
        ctx.levels = levels
        return product.view(-1).index_select(0, places) + bias.index_select(0, features)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        W_enc, b_dec, x, features, bags = ctx.saved_tensors
        of_pre, n_features = grads[0], W_enc.shape[1]
        of_b_enc = of_pre.new_zeros(n_features).index_add_(0, features, of_pre)
        # What each level reads, (levels · batch, d_in).
        read = x.repeat(len(ctx.levels), 1) if b_dec is None else (x - b_dec[:, None]).flatten(0, 1)
        of_W_enc = sum_sorted_columns(of_pre, read, bags, features, n_features)
        of_b_dec = None
        if b_dec is not None:
            columns = zip(ctx.levels.split(W_enc), ctx.levels.split(of_b_enc), strict=True)
            of_b_dec = -torch.stack([own @ weights for own, weights in columns])
        return of_W_enc, of_b_enc, of_b_dec, None, None, None, None, None, None, None
