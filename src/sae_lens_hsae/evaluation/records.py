"""What `evaluate_forest` found of a level and of a boundary, as frozen records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sae_lens_hsae.evaluation.jackknife import Interval


@dataclass(frozen=True, eq=False)
class Record:
    """Equality of records that may hold NaN: equal where `to_dict` is."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; NaN becomes None."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, type(self)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class LevelEvaluation(Record):
    """One level's own quality.

    Attributes:
        level: which level, 0 the coarsest.
        width: features of the level.
        l0: active features per token.
        variance_explained: 1 − Σ‖x − x̂‖² / Σ‖x − mean‖², over all evaluated tokens; NaN if x never varies.
        n_dead: features that fired on no ordinary token.
        variance_explained_ordinary: the same of all but outlying tokens (`outliers`).
        l0_ordinary: active features per token that is not outlying.
        intervals: confidence intervals of ``l0`` and ``variance_explained``.
        undefined: why a metric, or ``"interval of …"`` it, is NaN.
    """

    level: int
    width: int
    l0: float
    variance_explained: float
    n_dead: int
    variance_explained_ordinary: float
    l0_ordinary: float
    intervals: Mapping[str, Interval] = field(default_factory=dict, repr=False)
    undefined: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class BoundaryEvaluation(Record):
    """How well one level's activity agrees with the next one's. Means over nothing are NaN.

    The metrics are defined in `sae_lens_hsae.evaluation.boundary_metrics`.

    Attributes:
        parent_level: the coarser level; the children are in ``parent_level + 1``.
        hamming: Hamming distance per token over the living parents with at least one living child.
        p_parent_given_child: mean over the evaluated pairs of P(parent active | child active).
        p_child_given_parent: mean over the evaluated pairs of P(child active | parent active).
        n_pairs: pairs (parent, child) of the forest.
        n_pairs_left_out: those of which a member never fired; the means are over the others.
        n_parents_with_children: parents that ``hamming`` counts.
        n_unassigned: features of the children's level without a parent, dead ones included.
        unassigned_share: ``n_unassigned`` over the width of the children's level.
        coverage: mean over the parents that ``hamming`` counts of P(some child active | parent active).
        dominance: mean over the pairs ever active together of P(a_parent > a_child | both active).
        sibling_coactivation: how often siblings fire together, relative to independent features.
        non_sibling_coactivation: the same of all other pairs of features of the children's level.
        sibling_lift: the former over the latter; 1 if being siblings makes no difference.
        mean_children: children per parent that has any, dead ones included; NaN if none has.
        max_children: children of the parent with most.
        several_children_share: of the parents with children, the share with at least two.
        copy_share: of the evaluated pairs, the share whose child is a copy of its parent (`copies_of_parents`).
        weak_share: of those that are no copies, the share whose similarity, P(parent | child) − 2 P(parent) on these
            tokens, is below 0.5; the explorer page marks such edges.
        clear_share: the same from a similarity of 0.65 on.
        intervals: confidence intervals of the metrics from ``hamming`` to ``sibling_lift``.
        undefined: why a metric, or ``"interval of …"`` it, is NaN.
    """

    parent_level: int
    hamming: float
    p_parent_given_child: float
    p_child_given_parent: float
    n_pairs: int
    n_pairs_left_out: int
    n_parents_with_children: int
    n_unassigned: int
    unassigned_share: float
    coverage: float = math.nan
    dominance: float = math.nan
    sibling_coactivation: float = math.nan
    non_sibling_coactivation: float = math.nan
    sibling_lift: float = math.nan
    mean_children: float = math.nan
    max_children: int = 0
    several_children_share: float = math.nan
    copy_share: float = math.nan
    weak_share: float = math.nan
    clear_share: float = math.nan
    intervals: Mapping[str, Interval] = field(default_factory=dict, repr=False)
    undefined: Mapping[str, str] = field(default_factory=dict)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(of_name) for name, of_name in value.items()}
    if isinstance(value, Interval) and math.isnan(value.low):
        return None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
