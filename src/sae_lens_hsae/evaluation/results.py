"""`ForestEvaluation`: what `evaluate_forest` found, and its tables."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pandas

from sae_lens_hsae.evaluation.records import BoundaryEvaluation, LevelEvaluation, Record
from sae_lens_hsae.forest.parents import CLEAR_SIMILARITY, WEAK_SIMILARITY

MISSING = "–"


@dataclass(frozen=True, eq=False)
class ForestEvaluation(Record):
    """Result of `evaluate_forest`; print it for tables.

    Attributes:
        n_tokens: tokens evaluated.
        n_outlying: those further from the centre than three times the median distance, such as attention sinks.
        levels: one record per level, coarse to fine.
        boundaries: one record per level boundary, coarse to fine; one fewer than levels.
        trees_by_depth: as of `FeatureForest`.
        in_trees_share: share of all features that stand in trees of at least three distinct concepts, copies counted
            with their parents; features that fired on no ordinary token stand in none.
        n_blocks: blocks of tokens that the intervals are made from; 0 if there are none.
        tokens_per_block: tokens of each block; the last may have fewer.
        confidence: of the intervals.
        undefined: why ``"intervals"`` or ``"in_trees_share"`` are not there.
    """

    n_tokens: int
    levels: tuple[LevelEvaluation, ...]
    boundaries: tuple[BoundaryEvaluation, ...]
    trees_by_depth: tuple[int, ...] = ()
    in_trees_share: float = math.nan
    n_outlying: int = 0
    n_blocks: int = 0
    tokens_per_block: int = 0
    confidence: float = 0.95
    undefined: Mapping[str, str] = field(default_factory=dict)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per level; the boundary columns describe the boundary to the level above, NaN for level 0.

        The ends of the intervals are the columns ``…_low`` and ``…_high``.
        """
        boundary_of = {boundary.parent_level + 1: _columns(boundary) for boundary in self.boundaries}
        return pandas.DataFrame([_columns(level) | boundary_of.get(level.level, {}) for level in self.levels])

    def __str__(self) -> str:
        parts = [_title(self), _levels(self)]
        if self.boundaries:
            parts.append(_boundaries(self.boundaries))
        parts.append("\n".join([*_trees(self), *_notes(self)]))
        return "\n\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _columns(record: LevelEvaluation | BoundaryEvaluation) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for f in fields(record):
        if f.name not in ("intervals", "undefined"):
            columns[f.name] = getattr(record, f.name)
            if f.name in record.intervals:
                columns[f"{f.name}_low"], columns[f"{f.name}_high"] = record.intervals[f.name]
    return columns


def _title(evaluation: ForestEvaluation) -> str:
    title = f"{evaluation.n_tokens} tokens"
    if not evaluation.n_blocks:
        return title
    return (
        f"{title}; ± is half a {evaluation.confidence:.0%} confidence interval, "
        f"from {evaluation.n_blocks} blocks of {evaluation.tokens_per_block} tokens"
    )


def _levels(evaluation: ForestEvaluation) -> str:
    unassigned = {b.parent_level + 1: f"{b.n_unassigned} ({b.unassigned_share:.1%})" for b in evaluation.boundaries}
    rows = [["level", "width", "L0", "var. explained", "dead", "unassigned"]]
    for level in evaluation.levels:
        metrics = (_metric(level, "l0"), _metric(level, "variance_explained"))
        above = unassigned.get(level.level, MISSING)
        rows.append([str(level.level), str(level.width), *metrics, str(level.n_dead), above])
    if evaluation.n_outlying:
        share = evaluation.n_outlying / evaluation.n_tokens
        rows[0] += [f"without {evaluation.n_outlying} outlying tokens ({share:.2%}): L0", "var. explained"]
        for row, level in zip(rows[1:], evaluation.levels, strict=True):
            row += [_number(level.l0_ordinary), _number(level.variance_explained_ordinary)]
    return _table(rows)


def _boundaries(boundaries: Sequence[BoundaryEvaluation]) -> str:
    metrics = {
        "Hamming": "hamming",
        "P(parent | child)": "p_parent_given_child",
        "P(child | parent)": "p_child_given_parent",
        "coverage": "coverage",
        "dominance": "dominance",
        "sibling co-activation": "sibling_coactivation",
        "non-sibling co-activation": "non_sibling_coactivation",
        "sibling lift": "sibling_lift",
    }
    rows = [["levels", *(f"{b.parent_level} → {b.parent_level + 1}" for b in boundaries)]]
    rows += [[label, *(_metric(b, name) for b in boundaries)] for label, name in metrics.items()]
    rows += [
        ["pairs (left out)", *(f"{b.n_pairs} ({b.n_pairs_left_out})" for b in boundaries)],
        ["parents with children", *(str(b.n_parents_with_children) for b in boundaries)],
        ["children per parent (most)", *(f"{_number(b.mean_children)} ({b.max_children})" for b in boundaries)],
        ["parents with several children", *(_share(b.several_children_share) for b in boundaries)],
        ["copies", *(_share(b.copy_share) for b in boundaries)],
        [f"weak edges (similarity below {WEAK_SIMILARITY})", *(_share(b.weak_share) for b in boundaries)],
        [f"clear edges ({CLEAR_SIMILARITY} and more)", *(_share(b.clear_share) for b in boundaries)],
    ]
    return _table(rows, left=1)


def _trees(evaluation: ForestEvaluation) -> list[str]:
    trees = [f"{n} of depth {depth}" for depth, n in enumerate(evaluation.trees_by_depth, 1) if n]
    lines = [f"trees: {', '.join(trees)}"] if trees else []
    if evaluation.boundaries and not math.isnan(evaluation.in_trees_share):
        lines.append(f"{evaluation.in_trees_share:.0%} of the features stand in trees of at least three concepts")
    return lines


def _notes(evaluation: ForestEvaluation) -> list[str]:
    notes = [f"no {name}: {why}" for name, why in evaluation.undefined.items()]
    for level in evaluation.levels:
        if level.n_dead == level.width:
            notes.append(f"level {level.level} is dead: none of its {level.width} features fires on an ordinary token")
        notes += _reasons(f"level {level.level}", level)
    for boundary in evaluation.boundaries:
        notes += _reasons(f"levels {boundary.parent_level} → {boundary.parent_level + 1}", boundary)
    return notes


def _reasons(where: str, record: LevelEvaluation | BoundaryEvaluation) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, why in record.undefined.items():
        names.setdefault(why, []).append(name)
    return [f"{where}: no {', '.join(of_reason)}: {why}" for why, of_reason in names.items()]


def _metric(record: LevelEvaluation | BoundaryEvaluation, name: str) -> str:
    text, interval = _number(getattr(record, name)), record.intervals.get(name)
    if interval is None or math.isnan(interval.low):
        return text
    return f"{text} ± {interval.half_width:.2g}"


def _number(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.1%}"


def _table(rows: list[list[str]], left: int = 0) -> str:
    """Aligned columns, the first ``left`` of them to the left."""
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust] * left + [str.rjust] * (len(sizes) - left)
    return "\n".join(
        "  ".join(to(cell, size) for to, cell, size in zip(align, row, sizes, strict=True)) for row in rows
    )
