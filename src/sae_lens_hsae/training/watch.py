"""Warnings of training that goes wrong without failing; each is given once, with the remedy."""

from __future__ import annotations

import math
from collections import deque

import torch
from sae_lens import logger

from sae_lens_hsae.forest.levels import NO_PARENT, Levels
from sae_lens_hsae.sae.sparsity_control import LOG_COEFFICIENT_BOUND, SparsityState

EVERY = 100
"""Steps between two looks."""
FIRST_LOOK = 1000
"""Steps before the first: in fewer, L0 need not have come near its target, nor features have found their use."""
L0_BAND = 0.25
DEAD_SHARE = 0.1
FAMILY_SHARE = 0.5
MIN_PARENTS, MIN_CHILDREN = 4, 8
"""With fewer, one large family means nothing."""
VARIANCE_DROP = 0.05
VARIANCE_LOOKS = 5


class TrainingWatch:
    """Looks at training now and then, and logs a warning for each thing that is wrong, the first time it is."""

    def __init__(self, levels: Levels, target_l0: tuple[float, ...]) -> None:
        self._levels = levels
        self._targets = target_l0
        self._said: set[tuple[int, int]] = set()
        self._recent = [deque[float](maxlen=VARIANCE_LOOKS) for _ in levels]
        self._best = [-math.inf] * len(levels)

    @torch.no_grad()
    def look(
        self,
        step: int,
        sparsity: SparsityState,
        dead: torch.Tensor,
        parents: torch.Tensor,
        variance_explained: list[float],
    ) -> None:
        """Compare the state after a step, with each level's variance explained on a batch, with what it should be."""
        is_steered = sparsity.log_coefficient is not None  # else L0 is what it is to be
        for level, own in enumerate(self._levels):
            l0, target = float(sparsity.l0_ema[level]), self._targets[level]
            log_coefficient = float(sparsity.log_coefficient[level]) if sparsity.log_coefficient is not None else 0.0
            dead_share = float(dead[own].float().mean())
            assigned = parents[own][parents[own] != NO_PARENT]
            few = level == 0 or self._levels.widths[level - 1] < MIN_PARENTS or len(assigned) < MIN_CHILDREN
            largest = 0 if few else int(assigned.bincount().max())
            recent = self._recent[level]
            recent.append(variance_explained[level])
            mean = sum(recent) / len(recent)
            if len(recent) == VARIANCE_LOOKS:
                self._best[level] = max(self._best[level], mean)
            faults = [
                (
                    is_steered and abs(l0 / target - 1) > L0_BAND,
                    f"L0 is {l0:.3g}, its target {target:.3g}; train longer, raise sparsity_rate, or check that "
                    "activations have norm about √d_in (normalize_activations)",
                ),
                (
                    abs(log_coefficient) >= LOG_COEFFICIENT_BOUND,
                    f"λ is at its bound {math.exp(log_coefficient):.0e}, so L0 is steered no more; choose a target_l0 "
                    "that the level can reach, or check the scale of the activations",
                ),
                (
                    dead_share > DEAD_SHARE,
                    f"{dead_share:.0%} of the features are dead; "
                    "raise target_l0, lower lr, or keep dead_feature_loss on",
                ),
                (
                    largest > FAMILY_SHARE * len(assigned),
                    f"{largest} of {len(assigned)} children are under one parent; set max_children, or another "
                    "hierarchy_similarity",
                ),
                (
                    mean < self._best[level] - VARIANCE_DROP,
                    f"variance explained has fallen from {self._best[level]:.3f} to {mean:.3f}; lower lr or "
                    "structural_loss_coefficient, and resume from an earlier checkpoint",
                ),
            ]
            for fault, (is_wrong, message) in enumerate(faults):
                if is_wrong and (fault, level) not in self._said:
                    self._said.add((fault, level))
                    logger.warning(f"level {level}, step {step}: {message}")


def is_look_due(step: int) -> bool:
    return step >= FIRST_LOOK and step % EVERY == 0


@torch.no_grad()
def variance_explained(x: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """1 − ‖x̃ − x‖² / ‖x − mean x‖² over a batch, both (batch, d_in)."""
    x = x.float()
    return float(1 - (reconstruction.float() - x).square().sum() / (x - x.mean(0)).square().sum())
