"""A few trees of a forest as text: which ones are worth a look, and how they are drawn."""

from __future__ import annotations

import math

import torch

from sae_lens_hsae.evaluation import ForestEvaluation
from sae_lens_hsae.forest import FeatureForest

MIN_LEVELS = 3
MIN_FEATURES = 6
MAX_FEATURES = 40


def edge_scores(forest: FeatureForest, evaluation: ForestEvaluation) -> torch.Tensor:
    """(P(parent|child) − P(parent)) · (1 − P(child|parent)) of every feature as a child; NaN without living parent.

    High where the parent is active with the child and seldom otherwise, and the child is but a part of the parent: a
    child that is its parent once more has P(child|parent) near 1, and scores nothing.

    Returns:
        (n_features,) float64.
    """
    frequency = torch.cat([level.firing_frequency for level in evaluation.levels])
    scores = torch.full((forest.n_features,), math.nan, dtype=torch.float64)
    parents = forest.parents
    for (_, children), boundary in zip(forest.levels.boundaries, evaluation.boundaries, strict=True):
        of_parent = frequency[parents[children]]
        parent_given_child = boundary.parent_given_child
        child_given_parent = parent_given_child * frequency[children] / of_parent
        scores[children] = (parent_given_child - of_parent) * (1 - child_given_parent)
    return scores


def choose_trees(forest: FeatureForest, evaluation: ForestEvaluation, n_trees: int = 3) -> list[int]:
    """Roots of the trees to show, best first by the mean of their edges' scores; fewer if fewer qualify.

    Of the trees of `MIN_FEATURES` to `MAX_FEATURES` features those that are drawn with at least `MIN_LEVELS` levels.
    """
    scores = edge_scores(forest, evaluation)
    ranked = []
    for root in forest.roots().tolist():
        tree = torch.tensor(forest.subtree(root))
        shown = torch.tensor(shown_features(forest, scores, root))
        n_levels = int(forest.levels.level_of(shown).max()) + 1
        score = scores[tree[1:]].nanmean().item()
        if n_levels >= MIN_LEVELS and MIN_FEATURES <= len(tree) <= MAX_FEATURES:
            ranked.append((score, root))
    return [root for _, root in sorted(ranked, key=lambda pair: (-pair[0], pair[1]))[:n_trees]]


def shown_children(forest: FeatureForest, scores: torch.Tensor, feature: int, n_children: int = 3) -> list[int]:
    """Children of highest score; those with a score only."""
    children = [child for child in forest.children(feature) if not math.isnan(scores[child])]
    return sorted(children, key=lambda child: (-scores[child].item(), child))[:n_children]


def shown_features(forest: FeatureForest, scores: torch.Tensor, root: int) -> list[int]:
    """The features of one drawn tree, in the order of its lines."""
    below = [shown_features(forest, scores, child) for child in shown_children(forest, scores, root)]
    return [root, *(feature for branch in below for feature in branch)]
