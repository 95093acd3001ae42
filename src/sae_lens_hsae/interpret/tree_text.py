"""A few trees of a forest as text: which ones are worth a look, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sae_lens_hsae.evaluation import ForestEvaluation
from sae_lens_hsae.forest import FeatureForest

MIN_LEVELS = 3
MAX_FEATURES = 40
RULE = (
    f"of the roots whose trees reach at least {MIN_LEVELS} levels and hold at most {MAX_FEATURES} features, those "
    "whose edges bind most: highest mean of P(parent|child) − P(parent)"
)


def edge_lift(forest: FeatureForest, evaluation: ForestEvaluation) -> torch.Tensor:
    """P(parent | child) − P(parent) of every feature as a child: (n_features,) float64, NaN without living parent."""
    frequency = torch.cat([level.firing_frequency for level in evaluation.levels])
    lift = torch.full((forest.n_features,), math.nan, dtype=torch.float64)
    parents = forest.parents
    for (_, children), boundary in zip(forest.levels.boundaries, evaluation.boundaries, strict=True):
        lift[children] = boundary.parent_given_child - frequency[parents[children]]
    return lift


def choose_trees(forest: FeatureForest, evaluation: ForestEvaluation, n_trees: int = 3) -> list[int]:
    """Roots of the trees to show, best first, chosen by ``RULE``; fewer if fewer qualify."""
    lift = edge_lift(forest, evaluation)
    scored = []
    for root in forest.roots().tolist():
        tree = torch.tensor(forest.subtree(root))
        n_levels = int(forest.levels.level_of(tree).max()) + 1
        score = lift[tree[1:]].nanmean().item()
        if n_levels >= MIN_LEVELS and len(tree) <= MAX_FEATURES and not math.isnan(score):
            scored.append((score, root))
    return [root for _, root in sorted(scored, key=lambda pair: (-pair[0], pair[1]))[:n_trees]]


def shown_children(forest: FeatureForest, lift: torch.Tensor, feature: int, n_children: int = 3) -> list[int]:
    """Children of highest lift; those with a lift only."""
    children = [child for child in forest.children(feature) if not math.isnan(lift[child])]
    return sorted(children, key=lambda child: (-lift[child].item(), child))[:n_children]


def shown_features(forest: FeatureForest, lift: torch.Tensor, root: int) -> list[int]:
    """The features of one drawn tree, in the order of its lines."""
    below = [shown_features(forest, lift, child) for child in shown_children(forest, lift, root)]
    return [root, *(feature for branch in below for feature in branch)]


def draw_tree(forest: FeatureForest, lift: torch.Tensor, root: int, names: Mapping[int, str]) -> str:
    """One line per feature: its level and number, what it fires on, and its edge's lift; children indented.

    Args:
        names: text for every feature that :func:`shown_features` lists.
    """
    lines: list[str] = []

    def add(feature: int, lead: str, branch: str, next_lead: str) -> None:
        level = int(forest.levels.level_of(torch.tensor(feature)))
        strength = "" if math.isnan(lift[feature]) else f"  (+{lift[feature]:.2f})"
        lines.append(f"{lead}{branch}{level}/{feature - forest.levels.offsets[level]}  {names[feature]}{strength}")
        children = shown_children(forest, lift, feature)
        for child in children:
            last = child == children[-1]
            add(child, lead + next_lead, "└─ " if last else "├─ ", "   " if last else "│  ")
        hidden = len(forest.children(feature)) - len(children)
        if hidden:
            lines.append(f"{lead}{next_lead}   … {hidden} more")

    add(root, "", "", "")
    return "\n".join(lines)
