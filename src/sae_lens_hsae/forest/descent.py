"""Going down a forest: which features a finer level is asked about, once some of the level above are chosen."""

from __future__ import annotations

import torch

from sae_lens_hsae.forest.feature_forest import FeatureForest
from sae_lens_hsae.forest.levels import NO_PARENT


def candidates_below(forest: FeatureForest, level: int, chosen: torch.Tensor, unassigned: bool = True) -> torch.Tensor:
    """Numbers within a level of the children of ``chosen`` (n_features,), and of features without a parent, ascending.

    Nothing coarser stands for the latter; of a finer level they are left out unless ``unassigned``.
    """
    parents = forest.parents[forest.levels[level]]
    return torch.where(parents == NO_PARENT, unassigned or level == 0, chosen[parents]).nonzero().flatten()
