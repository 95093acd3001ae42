"""Going down a forest: which features a finer level is asked about, once some of the level above are chosen."""

from __future__ import annotations

import torch

from sae_lens_hsae.forest.feature_forest import FeatureForest
from sae_lens_hsae.forest.levels import NO_PARENT


def candidates_below(forest: FeatureForest, level: int, chosen: torch.Tensor, unassigned: bool = True) -> torch.Tensor:
    """The children of chosen features, and features without a parent, for which nothing coarser stands.

    Args:
        forest: whose features.
        level: of the candidates; all of the coarsest level are.
        chosen: (n_features,) bool, of the levels above.
        unassigned: whether a finer level's features without a parent are among them.

    Returns:
        Their numbers within the level, ascending.
    """
    parents = forest.parents[forest.levels[level]]
    return torch.where(parents == NO_PARENT, unassigned or level == 0, chosen[parents]).nonzero().flatten()
