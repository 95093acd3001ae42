"""Going down a forest: which features a finer level is asked about."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.levels import NO_PARENT
from sae_lens_hsae.interpret.circuits.places import Place


def candidates_below(forest: FeatureForest, level: int, over: torch.Tensor, unassigned: bool) -> torch.Tensor:
    """The coarsest level's features; at a finer level the children of chosen features, and those without a parent.

    Args:
        forest: whose features.
        level: which level.
        over: (n_features,) bool: those chosen above.
        unassigned: whether unassigned features are among them.

    Returns:
        Their numbers within the level, ascending.
    """
    parents = forest.parents[forest.levels[level]]
    return (
        ((parents == NO_PARENT) & (unassigned or level == 0) | over[parents.clamp(min=0)] & (parents != NO_PARENT))
        .nonzero()
        .flatten()
    )


def total_features(places: Sequence[Place]) -> tuple[int, ...]:
    """Features of each level, all places together."""
    depth = max(len(place.forest.levels) for place in places)
    widths = [[*place.forest.level_widths, *[0] * (depth - len(place.forest.levels))] for place in places]
    return tuple(map(sum, zip(*widths, strict=True)))
