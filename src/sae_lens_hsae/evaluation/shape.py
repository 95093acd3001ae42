"""Depth and branching of a forest: what its parent table says, whoever fires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sae_lens_hsae.forest import NO_PARENT, FeatureForest


@dataclass(frozen=True)
class ForestShape:
    """How deep the trees of a forest are. Dead features count here.

    A tree begins in a feature without parent: a root, or an unassigned feature. Its depth is the number of features on
    its longest path, 1 for a feature that stands alone.

    Attributes:
        trees_by_depth: how many trees have depth 1, 2, …
    """

    trees_by_depth: tuple[int, ...]


def forest_shape(forest: FeatureForest) -> ForestShape:
    """Depths of the trees of ``forest``."""
    parents = forest.parents
    height = torch.ones_like(parents)
    for _, below in reversed(list(forest.levels.boundaries)):
        assigned = below.start + (parents[below] != NO_PARENT).nonzero().flatten()
        height.scatter_reduce_(0, parents[assigned], height[assigned] + 1, "amax")
    return ForestShape(tuple(torch.bincount(height[parents == NO_PARENT])[1:].tolist()))


def children_per_parent(forest: FeatureForest, parent_level: int) -> dict[str, Any]:
    """How the parents of one boundary branch, as fields of `BoundaryEvaluation`. Dead features count here."""
    n_children = forest.n_children[forest.levels[parent_level]]
    n_children = n_children[n_children > 0].double()
    return {
        "mean_children": n_children.mean().item(),
        "max_children": int(n_children.max()) if len(n_children) else 0,
        "several_children_share": (n_children > 1).double().mean().item(),
    }
