"""BatchTopK levels: of a level's pre-activations on a batch the largest fire, L̂0 per token on average.

L0 is thus exact and needs no λ (Bussmann et al., arXiv 2412.06410). A token's features then depend on which others
are in its batch; so, as in SAELens, a running mean of the smallest activation that fired is kept for each level, and
what is saved are JumpReLU levels with that threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.cpu_step.places import places_of
from sae_lens_hsae.sae.level_activation import Activated, PreActivations

THRESHOLD_MOMENTUM = 0.99
"""Of the running thresholds; SAELens' default."""


class BatchTopKLevels(NamedTuple):
    """The rule for one batch, as a `LevelActivation`.

    Attributes:
        levels: of the features.
        target_l0: L̂0 of each level; ⌊L̂0 · batch⌋ pre-activations of it fire, fewer if fewer are positive.
        threshold: the running ones, (n_features,): where to look first. What is found does not depend on them.
        scale: what pre-activations of each token are multiplied by before they are compared, (batch,), at most 1: a
            token far from all others must not take the whole batch's features. None where all count alike.
    """

    levels: Levels
    target_l0: Sequence[float]
    threshold: torch.Tensor
    scale: torch.Tensor | None = None

    def found(self, pre: PreActivations) -> torch.Tensor:
        """Those that fire."""
        batch = pre.product.shape[1]
        found = torch.zeros(pre.product.shape, dtype=torch.bool)
        for own, target in zip(self.levels, self.target_l0, strict=True):
            n, of_level = int(target * batch), pre.of(own)
            # A search among all is the slow part. Batches are alike: nearly all are far below what will be the limit.
            guess = self.threshold[own.start] / 2
            places, values = self._compared(of_level, guess, batch)
            if (values > guess).sum() < n:
                places, values = self._compared(of_level, torch.zeros_like(guess), batch)
            found[own].view(-1)[places[are_largest(values, n)]] = True
        return found

    def _compared(self, pre: PreActivations, limit: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Flat places of the pre-activations above a limit, and these as they are compared, both (n,)."""
        places = places_of(pre.above(limit))
        values = pre.product.view(-1)[places] + pre.bias[places // batch]
        return places, values if self.scale is None else values * self.scale.to(values.dtype)[places % batch]

    def at(self, pre: torch.Tensor, features: torch.Tensor) -> Activated:  # noqa: ARG002 - all that was found fires
        return Activated(pre, torch.ones_like(pre))

    def of_all(self, hidden_pre: torch.Tensor) -> Activated:
        compared = self.scaled(hidden_pre.detach().T).T
        pairs = zip(self.levels.split(compared), self.target_l0, strict=True)
        fired = torch.cat(
            [are_largest(own.flatten(), int(target * len(own))).view(own.shape) for own, target in pairs], dim=1
        ).to(hidden_pre.dtype)
        return Activated(hidden_pre * fired, fired)

    def scaled(self, pre: torch.Tensor) -> torch.Tensor:
        """Pre-activations (n_features, batch) as they are compared."""
        return pre if self.scale is None else pre * self.scale.to(pre.dtype)


def follow_threshold(threshold: torch.Tensor, smallest: Sequence[torch.Tensor], levels: Levels, n_before: int) -> None:
    """Take one more batch into the running thresholds (n_features,), in place: first plain means, later with momentum.

    Takes the smallest activation that fired, () for each level; infinite where none did, which moves nothing.
    """
    weight = max(1 / (n_before + 1), 1 - THRESHOLD_MOMENTUM)
    for own, least in zip(levels, smallest, strict=True):
        running = threshold[own]
        moved = running.lerp(least.to(running.dtype), weight)
        running.copy_(torch.where(least.isfinite(), moved, running))


def are_largest(values: torch.Tensor, n: int) -> torch.Tensor:
    """Which of ``values`` (m,) are positive and among the n largest, never more than n of them, (m,) bool."""
    top = values.topk(min(n, len(values)), sorted=False)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(0, top.indices, top.values > 0)
