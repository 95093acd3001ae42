"""The forest over given levels in which every edge is true: how much of what is missed parents are to blame for."""

from __future__ import annotations

import torch

from experiments.planted.concept_matching import NO_CONCEPT, ConceptMatches
from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.forest.levels import Levels


def true_forest(matches: ConceptMatches, true_parents: torch.Tensor) -> FeatureForest:
    """Every matched feature under its concept's true parent one level up, or else under its own concept's copy there.

    What it lacks was lost before parents are chosen: concepts not found, or not found in adjacent levels.

    Args:
        matches: which concept each feature stands for.
        true_parents: (n_concepts,) int64, each concept's parent, −1 for none.
    """
    levels = Levels(matches.level_widths)
    parents = torch.full((levels.n_features,), NO_PARENT)
    # One more place, which is the last: that of no concept.
    nowhere = torch.tensor([NO_CONCEPT])
    above_concept = torch.cat([true_parents.cpu(), nowhere])
    for level, (above, below) in enumerate(levels.boundaries):
        feature_of = torch.cat([matches.features_of(level), nowhere])
        concepts = matches.concept_of[below]
        under, copy = feature_of[above_concept[concepts]], feature_of[concepts]
        parent = torch.where(under >= 0, under, copy)
        parents[below] = torch.where(parent >= 0, parent + above.start, NO_PARENT)
    return FeatureForest(parents, matches.level_widths)
