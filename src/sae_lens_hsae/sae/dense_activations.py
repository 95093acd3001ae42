"""The activations of a batch in full: the plain form of what training asks of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae_lens_hsae.forest.counts import Firing
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.perturbation import Replacement, replacement_delta
from sae_lens_hsae.sae.structural_loss import Families, structural_loss


class DenseActivations:
    """What training asks of the activations of a batch, from all of them; works at any precision, on any device.

    ``values``, pre-activations ``hidden_pre`` and ``fired``, 1 where they are active and 0 elsewhere, with the gradient
    that L0 has, are (batch, n_features).
    """

    def __init__(self, values: torch.Tensor, hidden_pre: torch.Tensor, fired: torch.Tensor, levels: Levels) -> None:
        self.values, self.hidden_pre, self.levels = values, hidden_pre, levels
        self._fired = fired

    def times_fired(self, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens on which each feature is active, (n_features,), of those that are counted, (batch,) bool, or all."""
        return self._active(counted).sum(0)

    def firing(self, step: int, counted: torch.Tensor | None = None) -> Firing:
        return Firing.of(self._active(counted).T, step)

    def _active(self, counted: torch.Tensor | None) -> torch.Tensor:
        active = self.values.detach() != 0
        return active if counted is None else active & counted[:, None]

    def l0(self, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean L0 of every level, (L,), of tokens with weights (batch,), with the gradient that the rule gives it."""
        exact = torch.promote_types(self.values.dtype, torch.float32)
        of_tokens = torch.stack([own.sum(-1, dtype=exact) for own in self.levels.split(self._fired)])
        return of_tokens.mean(-1) if weights is None else (of_tokens * weights).sum(-1) / weights.sum()

    def smallest(self) -> list[torch.Tensor]:
        """Smallest activation of every level, () each, without gradient; infinite where nothing is active."""
        return [own.masked_fill(own <= 0, torch.inf).amin() for own in self.levels.split(self.values.detach())]

    def reconstruct(
        self, W_dec: torch.Tensor, b_dec: torch.Tensor, replaced: Sequence[Replacement] = ()
    ) -> torch.Tensor:
        """Reconstructions of all levels with the replacements, (L, batch, d_in)."""
        # Split once: slicing level by level would make a gradient as large as all levels for each of them.
        per_level = zip(self.levels.split(self.values), W_dec.split(self.levels.widths), b_dec, strict=True)
        clean = [own_acts @ rows + bias for own_acts, rows, bias in per_level]
        return torch.stack(self._perturbed(clean, W_dec, replaced))

    # What is replaced changes shape from step to step: a compiled graph of it would be compiled again and again.
    @torch.compiler.disable()
    def _perturbed(
        self, clean: list[torch.Tensor], W_dec: torch.Tensor, replaced: Sequence[Replacement]
    ) -> list[torch.Tensor]:
        perturbed = list(clean)
        for level, change in enumerate(replaced):
            if len(change.features):
                perturbed[level] = clean[level] + replacement_delta(self.values, W_dec, change)
        return perturbed

    def structural_loss(
        self, W_dec: torch.Tensor, families: Families, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Σ_l Σ_i L_PC,(l,i), mean over the batch, of tokens with weights (batch,)."""
        values = self.values if weights is None else self.values * weights.sqrt()[:, None]
        return structural_loss(values, W_dec, families)
