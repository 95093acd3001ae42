"""Concepts: features and their copies taken together, so that one thing the levels say several times counts once.

A level of twice as many features repeats much of the level above. Such a *copy* is a feature whose decoder direction is
nearly its parent's. It may be the same thing once more or a part of it: the direction does not say on how many of its
parent's tokens it fires. A chain of copies is counted as one concept.
"""

from __future__ import annotations

from functools import cached_property

import torch

from sae_lens_hsae.forest.feature_forest import FeatureForest
from sae_lens_hsae.forest.levels import NO_PARENT

COPY_COSINE = 0.8
"""Cosine of two decoder directions above which a child is a copy of its parent.

On planted trees, where it is known which edges join a concept to itself, 0.8 marks about as many edges as there are
such; 0.9 misses half of them.
"""


def copies_of_parents(forest: FeatureForest, decoder: torch.Tensor, either_sign: bool = False) -> torch.Tensor:
    """Which features are copies of their parents: the cosine of their decoder rows is above 0.8.

    Args:
        forest: who is whose parent.
        decoder: (n_features, d_in) decoder rows of all levels, coarse to fine, of any norm.
        either_sign: whether features fire with either sign, so that opposite directions are one.

    Returns:
        (n_features,) bool, False where there is no parent.

    Raises:
        ValueError: if ``decoder`` has not one row per feature.
    """
    if decoder.ndim != 2 or len(decoder) != forest.n_features:
        raise ValueError(
            f"decoder has shape {tuple(decoder.shape)}, but the forest has {forest.n_features} features; "
            "give the rows of all levels, coarse to fine"
        )
    parent, child = forest.edges().T
    rows = torch.nn.functional.normalize(decoder.detach().float().cpu(), dim=1)
    found = torch.zeros(forest.n_features, dtype=torch.bool)
    cosine = (rows[parent] * rows[child]).sum(1)
    found[child] = (cosine.abs() if either_sign else cosine) > COPY_COSINE
    return found


class Concepts:
    """A forest with every copy joined to its parent. A concept goes by its topmost feature.

    Args:
        forest: who is whose parent.
        is_copy: (n_features,) bool, which features stand for the same as their parents (`copies_of_parents`).

    Raises:
        ValueError: if ``is_copy`` has not one entry per feature, or marks a feature without a parent.
    """

    def __init__(self, forest: FeatureForest, is_copy: torch.Tensor) -> None:
        parents = forest.parents
        if is_copy.shape != parents.shape:
            raise ValueError(f"is_copy has shape {tuple(is_copy.shape)}; give one entry per feature, ({len(parents)},)")
        is_copy = is_copy.to("cpu", torch.bool)
        if (is_copy & (parents == NO_PARENT)).any():
            orphan = int((is_copy & (parents == NO_PARENT)).nonzero()[0])
            raise ValueError(f"is_copy[{orphan}] is true, but feature {orphan} has no parent to be a copy of")
        self.forest = forest
        self.is_copy = is_copy
        top = torch.arange(forest.n_features)
        tree = top.clone()
        for _, below in forest.levels.boundaries:
            above = parents[below].clamp(min=0)
            top[below] = torch.where(is_copy[below], top[above], top[below])
            tree[below] = torch.where(parents[below] == NO_PARENT, tree[below], tree[above])
        self._top, self._tree = top, tree

    @property
    def top_of_tree(self) -> torch.Tensor:
        """(n_features,) int64: the topmost feature of the tree that each feature stands in; a copy."""
        return self._tree.clone()

    @property
    def parents(self) -> torch.Tensor:
        """(n_features,) int64: the concept above each feature's own, by its topmost feature; −1 for none."""
        above = self.forest.parents[self._top]
        return torch.where(above == NO_PARENT, NO_PARENT, self._top[above.clamp(min=0)])

    def members(self, feature: int | str) -> list[int]:
        """All features of the concept that ``feature`` belongs to, ascending: coarse to fine."""
        return (self._top == self._top[self.forest.index(feature)]).nonzero().flatten().tolist()

    def children(self, feature: int | str) -> list[int]:
        """Topmost features of the concepts directly below that of ``feature``, ascending."""
        below = (child for member in self.members(feature) for child in self.forest.children(member))
        return sorted(child for child in below if not self.is_copy[child])

    @cached_property
    def tree_sizes(self) -> torch.Tensor:
        """(n_features,) int64: how many distinct concepts stand in the tree of each feature, its own included."""
        n_concepts = torch.bincount(self._tree[~self.is_copy], minlength=len(self._tree))
        return n_concepts[self._tree]

    def in_trees_share(self, least: int = 3) -> float:
        """Share of all features that stand in trees of at least ``least`` distinct concepts."""
        return (self.tree_sizes >= least).double().mean().item()
