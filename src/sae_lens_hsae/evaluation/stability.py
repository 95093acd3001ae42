"""How much of a forest another training seed has, too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment

from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, check_fit, level_saes
from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.forest.post_hoc import have_either_sign

FLOOR = 0.7
"""Cosine below which two features are not the same."""

HUNGARIAN_MAX_WIDTH = 8192
"""Widest level that is matched by the Hungarian algorithm."""

BLOCK_ELEMENTS = 2**24
NO_MATCH = -1


@dataclass(frozen=True)
class EdgeAgreement:
    """How far two forests agree at one level boundary, over matched features. Shares of nothing are NaN.

    Attributes:
        parent_level: the coarser level of the boundary.
        n_edges: edges of the first forest with both ends matched.
        n_other_edges: the same of the other forest.
        n_common: edges that are in both.
        n_children: children that are matched.
        n_children_in_both: children that have such an edge in either forest.
        kept: ``n_common / n_edges``. An edge also counts as lost if the other forest leaves the child unassigned.
        kept_adjusted: ``kept`` on a scale where 0 is chance, the other forest's parents dealt out at random among all
            matched children, and 1 is perfect: (kept − chance) / (1 − chance).
    """

    parent_level: int
    n_edges: int
    n_other_edges: int
    n_common: int
    n_children: int
    n_children_in_both: int
    kept: float
    kept_adjusted: float


@torch.no_grad()
def seed_stability(
    levels: Sequence[LevelSAE] | SAEStack,
    forest: FeatureForest,
    other_levels: Sequence[LevelSAE] | SAEStack,
    other_forest: FeatureForest,
) -> tuple[EdgeAgreement, ...]:
    """Match two stacks' features level by level, and count the edges that they have in common, by level boundary.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all; the SAEs need a ``W_dec``.
        other_levels: the same of the other stack, which needs as many levels, not the same widths.
        other_forest: who is whose parent there.

    Raises:
        ValueError: if forests and levels do not fit, or the stacks have different d_in or numbers of levels.
    """
    matches = _matches(level_saes(levels), forest, level_saes(other_levels), other_forest)
    return tuple(
        _agreement(level, parent, other_parent, int((matches[level + 1] != NO_MATCH).sum()))
        for level, (parent, other_parent) in enumerate(_matched_parents(matches, forest, other_forest))
    )


@torch.no_grad()
def shared_edges(
    levels: Sequence[LevelSAE] | SAEStack,
    forest: FeatureForest,
    other_levels: Sequence[LevelSAE] | SAEStack,
    other_forest: FeatureForest,
) -> torch.Tensor:
    """Of which children the other stack has the edge to their parent, too; arguments and errors as `seed_stability`.

    Returns:
        (n_features,) bool: both ends have a match in the other stack, and there they are parent and child.
    """
    matches = _matches(level_saes(levels), forest, level_saes(other_levels), other_forest)
    shared = torch.zeros(forest.n_features, dtype=torch.bool)
    for (_, below), (parent, other_parent) in zip(
        forest.levels.boundaries, _matched_parents(matches, forest, other_forest), strict=True
    ):
        shared[below] = (parent != NO_PARENT) & (parent == other_parent)
    return shared


def _matches(
    saes: Sequence[LevelSAE],
    forest: FeatureForest,
    other_saes: Sequence[LevelSAE],
    other_forest: FeatureForest,
) -> list[torch.Tensor]:
    """`match_decoders` of every level."""
    check_fit(saes, forest)
    check_fit(other_saes, other_forest)
    if len(saes) != len(other_saes):
        raise ValueError(f"the stacks have {len(saes)} and {len(other_saes)} levels; levels are matched one to one")
    signed = have_either_sign([*saes, *other_saes])
    return [
        match_decoders(_rows(sae, level), _rows(other, level), either_sign=signed)
        for level, (sae, other) in enumerate(zip(saes, other_saes, strict=True))
    ]


def _matched_parents(
    matches: Sequence[torch.Tensor], forest: FeatureForest, other_forest: FeatureForest
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Per boundary each child's parent in either forest, (children,), both by their number in the first one's level.

    −1 where there is none, or where one of the two ends has no match.
    """
    for level, (above, below) in enumerate(pairwise(matches)):
        own = _parents_of(forest, level)
        parent = _looked_up(own, above)
        parent = torch.where((parent != NO_MATCH) & (below != NO_MATCH), own, NO_PARENT)
        above_of_other = torch.full((other_forest.level_widths[level],), NO_MATCH)
        above_of_other[above[above != NO_MATCH]] = (above != NO_MATCH).nonzero().flatten()
        yield parent, _looked_up(_looked_up(below, _parents_of(other_forest, level)), above_of_other)


@torch.no_grad()
def match_decoders(
    rows: torch.Tensor, other_rows: torch.Tensor, floor: float = FLOOR, either_sign: bool = False
) -> torch.Tensor:
    """(n,) each decoder row's partner among those of another SAE by cosine, each at most once; −1 for none.

    Up to a width of `HUNGARIAN_MAX_WIDTH` the Hungarian algorithm maximises the sum over pairs of at least ``floor``,
    as arXiv 2501.16615 compares seeds. It holds all cosines at once, and its time grows with the cube of the width at
    worst: a second or two at 4,096 features. Wider levels take the pairs that are each other's nearest, in blocks:
    this may miss pairs, but finds none that either side would not choose.

    Args:
        rows: (n, d_in).
        other_rows: (m, d_in).
        floor: cosine, above 0 and at most 1, that a pair needs.
        either_sign: whether features fire with either sign, so that opposite rows are one.

    A ValueError if the rows differ in length, or ``floor`` is out of range.
    """
    if rows.ndim != 2 or other_rows.ndim != 2 or rows.shape[1] != other_rows.shape[1]:
        raise ValueError(
            f"decoder rows of shapes {tuple(rows.shape)} and {tuple(other_rows.shape)} cannot be compared; "
            "both need (features, d_in) with the same d_in"
        )
    if not 0 < floor <= 1:
        raise ValueError(f"floor={floor} must be above 0 and at most 1: it is a cosine")
    rows = torch.nn.functional.normalize(rows.float(), dim=1)
    other_rows = torch.nn.functional.normalize(other_rows.float().to(rows.device), dim=1)
    search = _hungarian if max(len(rows), len(other_rows)) <= HUNGARIAN_MAX_WIDTH else _mutual
    row, partner = search(rows, other_rows, floor, either_sign)
    match = torch.full((len(rows),), NO_MATCH)
    match[row.cpu()] = partner.cpu()
    return match


def _hungarian(
    rows: torch.Tensor, others: torch.Tensor, floor: float, either_sign: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    cosine = (rows @ others.T).abs() if either_sign else rows @ others.T
    # Before and not after the assignment: a pair below the floor must not cost another one its partner.
    cosine[cosine < floor] = 0
    row, partner = (torch.from_numpy(index) for index in linear_sum_assignment(cosine.cpu().numpy(), maximize=True))
    row, partner = row.to(rows.device), partner.to(rows.device)
    kept = cosine[row, partner] > 0
    return row[kept], partner[kept]


def _mutual(
    rows: torch.Tensor, others: torch.Tensor, floor: float, either_sign: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    nearest, cosine = _nearest(rows, others, either_sign)
    back, _ = _nearest(others, rows, either_sign)
    row = torch.arange(len(rows), device=rows.device)
    kept = (back[nearest] == row) & (cosine >= floor)
    return row[kept], nearest[kept]


def _nearest(rows: torch.Tensor, others: torch.Tensor, either_sign: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest other row of each row, the first of equals, and its cosine."""
    blocks = (block @ others.T for block in rows.split(max(1, BLOCK_ELEMENTS // len(others))))
    best = [(cosine.abs() if either_sign else cosine).max(dim=1) for cosine in blocks]
    return torch.cat([block.indices for block in best]), torch.cat([block.values for block in best])


def _agreement(level: int, parent: torch.Tensor, other: torch.Tensor, n_children: int) -> EdgeAgreement:
    """Agreement of two parent tables (children,) over the same parents, -1 where an edge does not count."""
    has, other_has = parent != NO_PARENT, other != NO_PARENT
    both = has & other_has
    n_common = int((both & (parent == other)).sum())
    n_edges = int(has.sum())
    kept = _share(n_common, n_edges)
    return EdgeAgreement(
        parent_level=level,
        n_edges=n_edges,
        n_other_edges=int(other_has.sum()),
        n_common=n_common,
        n_children=n_children,
        n_children_in_both=int(both.sum()),
        kept=kept,
        kept_adjusted=_adjusted(kept, _share(_chance(parent[has], other[other_has]), n_edges * n_children)),
    )


def _chance(parent: torch.Tensor, other: torch.Tensor) -> int:
    """Pairs of one entry each that are equal."""
    n = 1 + int(torch.cat([parent, other, torch.tensor([0])]).max())
    return int((torch.bincount(parent, minlength=n) * torch.bincount(other, minlength=n)).sum())


def _adjusted(share: float, chance: float) -> float:
    return (share - chance) / (1 - chance) if chance < 1 else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _looked_up(index: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``table[index]``, and -1 where the index is -1."""
    return torch.where(index >= 0, table[index.clamp(min=0)], -1)


def _parents_of(forest: FeatureForest, level: int) -> torch.Tensor:
    """Parents of the children of ``level``, by their number within it; -1 for none."""
    above, below = forest.levels[level], forest.levels[level + 1]
    parents = forest.parents[below]
    return torch.where(parents == NO_PARENT, NO_PARENT, parents - above.start)


def _rows(sae: Any, level: int) -> torch.Tensor:
    W_dec = getattr(sae, "W_dec", None)
    if not isinstance(W_dec, torch.Tensor):
        raise ValueError(f"level {level} is a {type(sae).__name__} without W_dec; features are matched by decoder rows")
    return W_dec
