"""`FeatureForest`: who is whose parent, for any stack of levels (HSAE §3).

HSAE trains the forest together with its levels; a post-hoc assignment between independently trained SAEs
gives the same object. Queries about one feature answer in Python ints, queries about the whole forest in tensors.
A feature is given as its flat index, or by its name, such as ``"0/41"``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE

from sae_lens_hsae.forest.html import TREES_SHOWN, levels_html, tree_html
from sae_lens_hsae.forest.levels import NO_PARENT, Levels, children_by_parent
from sae_lens_hsae.forest.parents import DEFAULT_RULE, ParentRule
from sae_lens_hsae.forest.post_hoc import assign_parents

if TYPE_CHECKING:
    import networkx

SCHEMA = "sae_lens_hsae/feature_forest"
SCHEMA_VERSION = 1


class FeatureForest:
    """Immutable parent table over the features of all levels.

    Features are numbered flat, coarse to fine (see `Levels`). A feature of level 0 is a *root*; a feature
    below level 0 without a parent is *unassigned*. The children's index is built on first use, in one sort.

    Args:
        parents: (n_features,) integers, the flat index of each feature's parent or -1 for none; copied, to the CPU.
        level_widths: number of features of each level, coarse to fine, or the `Levels` themselves.

    Raises:
        ValueError: if the widths or the parents are invalid; see `validate_parents`.
    """

    def __init__(self, parents: torch.Tensor | Sequence[int], level_widths: Levels | Sequence[int]) -> None:
        self._levels = level_widths if isinstance(level_widths, Levels) else Levels(tuple(level_widths))
        try:
            table = torch.as_tensor(parents)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"parents is not a list of integers ({error}); write {NO_PARENT} for no parent") from error
        validate_parents(table, self._levels)
        self._parents = table.detach().to("cpu", torch.int64, copy=True)

    @classmethod
    def from_saes(
        cls,
        saes: Sequence[SAE[Any]],
        rule: ParentRule = DEFAULT_RULE,
        activations: Iterable[torch.Tensor] | None = None,
    ) -> FeatureForest:
        """The forest of SAEs that were trained without one (the paper's "post hoc", whose rule is `PAPER_RULE`).

        Args:
            saes: SAELens SAEs of growing width that read the same hook point, of any architectures.
            rule: what makes a parent; by default as in training.
            activations: (batch, d_in) tensors, read once, or one of all tokens; a rule of the weights alone needs none.
                What fires on them is kept, a few bytes for each active feature of a token; some 100,000 tokens are
                enough.

        Raises:
            ValueError: if the SAEs do not fit together, or the rule needs activations and there are none, or they have
                another shape or hold NaN or infinity.
        """
        return cls(assign_parents(saes, rule, activations), [sae.cfg.d_sae for sae in saes])

    @property
    def parents(self) -> torch.Tensor:
        """(n_features,) int64, -1 for none; a copy, so that no caller can change the forest."""
        return self._parents.clone()

    @property
    def levels(self) -> Levels:
        """The levels, and the flat numbering of their features."""
        return self._levels

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Features of each level, coarse to fine."""
        return self._levels.widths

    @property
    def n_features(self) -> int:
        """Features of all levels together."""
        return self._parents.numel()

    def __len__(self) -> int:
        return self.n_features

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FeatureForest):
            return NotImplemented
        return self._levels == other._levels and torch.equal(self._parents, other._parents)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        n_edges = int((self._parents != NO_PARENT).sum())
        n_roots = self.level_widths[0]
        return (
            f"FeatureForest(level_widths={list(self.level_widths)}: {self.n_features} features, {n_roots} roots, "
            f"{n_edges} edges, {self.n_features - n_roots - n_edges} unassigned)"
        )

    def _repr_html_(self) -> str:
        trees = sorted(map(self.subtree, self.roots().tolist()), key=lambda tree: (-len(tree), tree[0]))
        shown = [tree_html(tree, self.children, self._levels.name) for tree in trees[:TREES_SHOWN] if len(tree) > 1]
        return (
            f"<div><b>FeatureForest</b> of {self.n_features:,} features, depth {self.depth}"
            f"{levels_html(self._levels, self._parents)}{''.join(shown)}</div>"
        )

    # One feature. All raise IndexError for a feature that does not exist, and ValueError for a word that is no name.

    def index(self, feature: int | str) -> int:
        """Flat index of a feature that is given by it or by its name, such as ``"0/41"``."""
        if isinstance(feature, str):
            return self._levels.named(feature)
        index = operator.index(feature)
        # A negative index would quietly answer for a feature counted from the end, and -1 means "no parent" here.
        if not 0 <= index < self.n_features:
            raise IndexError(f"feature {index} does not exist; the forest has features 0 … {self.n_features - 1}")
        return index

    def parent(self, feature: int | str) -> int | None:
        """Flat index of the feature's parent; None for a root and for an unassigned feature."""
        parent = int(self._parents[self.index(feature)])
        return None if parent == NO_PARENT else parent

    def children(self, feature: int | str) -> list[int]:
        """Flat indices of the feature's children, ascending."""
        return self._children_of(torch.tensor([self.index(feature)])).tolist()

    def siblings(self, feature: int | str) -> list[int]:
        """The other children of the feature's parent, ascending; none for a feature without a parent."""
        feature = self.index(feature)
        parent = self.parent(feature)
        return [] if parent is None else [child for child in self.children(parent) if child != feature]

    def path(self, feature: int | str) -> list[int]:
        """From the feature's topmost ancestor (a root or an unassigned feature) down to the feature itself."""
        path = [self.index(feature)]
        while (parent := self.parent(path[-1])) is not None:
            path.append(parent)
        return path[::-1]

    def subtree(self, feature: int | str) -> list[int]:
        """The feature and all its descendants, breadth-first."""
        generation = torch.tensor([self.index(feature)])
        generations = []
        while generation.numel():
            generations.append(generation)
            generation = self._children_of(generation)
        return torch.cat(generations).tolist()

    # The whole forest.

    def roots(self) -> torch.Tensor:
        """(n_0,) flat indices of the roots: the features of level 0, none of which can have a parent."""
        return torch.arange(self.level_widths[0])

    def unassigned(self) -> torch.Tensor:
        """Flat indices of the features below level 0 that have no parent, ascending."""
        features = (self._parents == NO_PARENT).nonzero().flatten()
        return features[self.level_widths[0] :]

    def edges(self) -> torch.Tensor:
        """(n_edges, 2) pairs (parent, child), in the order of the children."""
        children = (self._parents != NO_PARENT).nonzero().flatten()
        return torch.stack([self._parents[children], children], dim=1)

    @property
    def n_children(self) -> torch.Tensor:
        """(n_features,) int64: how many children each feature has."""
        return self._children[1].diff()

    @property
    def has_children(self) -> torch.Tensor:
        """(n_features,) bool."""
        return self.n_children > 0

    @cached_property
    def trees_by_depth(self) -> tuple[int, ...]:
        """How many trees have depth 1, 2, …: features on their longest path.

        A tree begins in a feature without parent: a root, or an unassigned feature, which may stand alone.
        """
        height = torch.ones_like(self._parents)
        for _, below in reversed(list(self._levels.boundaries)):
            assigned = below.start + (self._parents[below] != NO_PARENT).nonzero().flatten()
            height.scatter_reduce_(0, self._parents[assigned], height[assigned] + 1, "amax")
        return tuple(torch.bincount(height[self._parents == NO_PARENT])[1:].tolist())

    @property
    def depth(self) -> int:
        """Features on the longest path of the forest; 1 if there are no edges."""
        return len(self.trees_by_depth)

    # Exchange with other formats.

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and ints, ready for JSON; `from_dict` reads it back."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "level_widths": list(self.level_widths),
            "parents": self._parents.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureForest:
        """The forest that `to_dict` described.

        Raises:
            ValueError: if ``data`` is no such description, is of a newer version, or holds invalid parents.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema={data.get('schema')!r} is not {SCHEMA!r}; pass what FeatureForest.to_dict() gave")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version={data.get('schema_version')!r} cannot be read, only {SCHEMA_VERSION}; "
                "read it with the version of sae-lens-hsae that wrote it, or a newer one"
            )
        if not all(isinstance(data.get(key), (list, tuple)) for key in ("level_widths", "parents")):
            raise ValueError(
                "level_widths and parents must be lists; pass what FeatureForest.to_dict() gave, all of it"
            )
        return cls(data["parents"], data["level_widths"])

    def to_networkx(self) -> networkx.DiGraph:
        """A directed graph with an edge from each parent to its child and each node's ``level``.

        Raises:
            ImportError: if networkx is not installed.
        """
        try:
            import networkx
        except ImportError as error:
            raise ImportError("FeatureForest.to_networkx() needs networkx: pip install networkx") from error
        graph = networkx.DiGraph()
        for level, features in enumerate(self._levels):
            graph.add_nodes_from(range(features.start, features.stop), level=level)
        graph.add_edges_from(self.edges().tolist())
        return graph

    def _children_of(self, features: torch.Tensor) -> torch.Tensor:
        """Children of several features, concatenated in the features' order."""
        index, offsets = self._children
        starts = offsets[features]
        counts = offsets[features + 1] - starts
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return index[starts.repeat_interleave(counts) + within]

    @cached_property
    def _children(self) -> tuple[torch.Tensor, torch.Tensor]:
        return children_by_parent(self._parents)

    @cached_property
    def _hash(self) -> int:
        return hash((self.level_widths, self._parents.numpy().tobytes()))


def candidates_below(forest: FeatureForest, level: int, chosen: torch.Tensor, unassigned: bool = True) -> torch.Tensor:
    """Numbers within a level of the children of ``chosen`` (n_features,), and of features without a parent, ascending.

    Nothing coarser stands for the latter; of a finer level they are left out unless ``unassigned``.
    """
    parents = forest.parents[forest.levels[level]]
    return torch.where(parents == NO_PARENT, unassigned or level == 0, chosen[parents]).nonzero().flatten()


def validate_parents(parents: torch.Tensor, levels: Levels) -> None:
    """Check that ``parents`` describes a forest: one entry per feature, -1 or a feature exactly one level up.

    Args:
        parents: (n_features,) flat index of each feature's parent, -1 for none.
        levels: the levels that the features belong to.

    Raises:
        ValueError: naming the first feature that breaks a rule, its value, its level and the remedy.
    """
    n = levels.n_features
    if parents.shape != (n,):
        raise ValueError(
            f"parents has shape {tuple(parents.shape)}, but level_widths={list(levels.widths)} has {n} features; "
            f"give one entry per feature, shape ({n},)"
        )
    if parents.is_floating_point() or parents.is_complex() or parents.dtype == torch.bool:
        raise ValueError(
            f"parents has dtype {parents.dtype}, which cannot hold every feature index exactly; store it as torch.int64"
        )
    parents = parents.detach().to("cpu", torch.int64)
    level = levels.level_of(torch.arange(n))
    starts = torch.tensor((0, *levels.offsets))
    wrong = (parents != NO_PARENT) & ((parents < starts[level]) | (parents >= starts[level + 1]))
    if wrong.any():
        feature = int(wrong.int().argmax())
        own = int(level[feature])
        remedy = f"a feature of level 0 is a root, set parents[{feature}] = {NO_PARENT}"
        if own:
            above = levels[own - 1]
            remedy = f"take a parent from level {own - 1} ({above.start} … {above.stop - 1}), or {NO_PARENT} for none"
        raise ValueError(
            f"parents[{feature}] = {int(parents[feature])}, but feature {feature} is in level {own}; {remedy}"
        )
