"""What `judge_forest` reports: rates per level boundary, and the best and worst trees by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sae_lens_hsae.evaluation.cluster_bootstrap import Estimate


@dataclass(frozen=True)
class PairRates:
    """How the concepts of pairs relate.

    Attributes:
        under: share of the pairs whose child's concept is strictly under the parent's.
        equal: share whose concepts are the same.
        neither: share of the others.
        subsumed: under or equal.
        more_specific: of the pairs whose concepts are not the same, related or not, the share whose child's has the
            higher information content.
        shared_information: mean information content, in nats, of the lowest concept over both (Resnik 1995). Unlike the
            shares it gives nothing for a parent that means anything.
    """

    under: Estimate
    equal: Estimate
    neither: Estimate
    subsumed: Estimate
    more_specific: Estimate
    shared_information: Estimate


@dataclass(frozen=True)
class BoundaryMeaning:
    """One level boundary, or all together.

    Attributes:
        parent_level: the coarser level; None for all boundaries together.
        n_pairs: pairs judged.
        n_pairs_left_out: assigned pairs of which a member has no concept.
        forest: the forest's pairs.
        shuffled: the same pairs shuffled; NaN where no bin has two parents.
        gain: ``forest − shuffled``, with the interval of the difference.
        undefined: why ``forest``, ``shuffled`` (and with it ``gain``) or the intervals are NaN.
    """

    parent_level: int | None
    n_pairs: int
    n_pairs_left_out: int
    forest: PairRates
    shuffled: PairRates
    gain: PairRates
    undefined: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TreeMeaning:
    """One root and all below it.

    Attributes:
        root: flat index of the root.
        concept: the root's concept.
        score: mean over the tree's pairs of the information that parent and child share minus the parent's that the
            child lacks: the parent's information content where the child is subsumed, negative where a special parent
            has a child of another kind.
        n_pairs: pairs judged.
        n_subsumed: those whose child's concept is under the parent's or the same.
        children: concepts of the root's children, those of highest score first.
    """

    root: int
    concept: str
    score: float
    n_pairs: int
    n_subsumed: int
    children: tuple[str, ...]


@dataclass(frozen=True)
class ForestMeaning:
    """Result of `judge_forest`.

    Attributes:
        boundaries: one record per level boundary, coarse to fine.
        overall: all boundaries together.
        best_trees: the ranked trees of highest score, best first.
        worst_trees: those of lowest score, worst first.
        n_trees: trees that were ranked: those with enough judged pairs.
    """

    boundaries: tuple[BoundaryMeaning, ...]
    overall: BoundaryMeaning
    best_trees: tuple[TreeMeaning, ...]
    worst_trees: tuple[TreeMeaning, ...]
    n_trees: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and names, ready for JSON; NaN becomes None."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in record.items():
            if isinstance(value, tuple):
                record[name] = [asdict(each) for each in value]
            elif not isinstance(value, int):
                record[name] = asdict(value)
        return _plain(record)


def _plain(value: Any) -> Any:
    """The same with NaN replaced by None and tuples by lists."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
