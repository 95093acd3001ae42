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
        depth: of the deepest tree.
        trees_by_depth: how many trees have depth 1, 2, …
        features_by_depth: how many features are the first, second, … of the path that leads to them.
    """

    depth: int
    trees_by_depth: tuple[int, ...]
    features_by_depth: tuple[int, ...]


def forest_shape(forest: FeatureForest) -> ForestShape:
    """Depths of the trees and features of ``forest``."""
    parents = forest.parents
    depth = torch.ones_like(parents)
    height = torch.ones_like(parents)
    boundaries = list(forest.levels.boundaries)
    for _, below in boundaries:
        assigned, parent = _edges(parents, below)
        depth[assigned] = depth[parent] + 1
    for _, below in reversed(boundaries):
        assigned, parent = _edges(parents, below)
        height.scatter_reduce_(0, parent, height[assigned] + 1, "amax")
    return ForestShape(
        depth=int(depth.max()),
        trees_by_depth=_histogram(height[parents == NO_PARENT]),
        features_by_depth=_histogram(depth),
    )


def children_per_parent(forest: FeatureForest, parent_level: int) -> dict[str, Any]:
    """How the parents of one level boundary branch, as fields of `BoundaryEvaluation`. Dead features count here.

    Returns:
        ``mean_children`` and ``several_children_share`` are over the parents with children, NaN if there are none.
    """
    n_children = forest.n_children[forest.levels[parent_level]]
    n_children = n_children[n_children > 0].double()
    return {
        "mean_children": n_children.mean().item(),
        "max_children": int(n_children.max()) if len(n_children) else 0,
        "several_children_share": (n_children > 1).double().mean().item(),
    }


def _edges(parents: torch.Tensor, below: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The assigned features of a level, and their parents."""
    assigned = below.start + (parents[below] != NO_PARENT).nonzero().flatten()
    return assigned, parents[assigned]


def _histogram(depths: torch.Tensor) -> tuple[int, ...]:
    return tuple(torch.bincount(depths)[1:].tolist())
