"""Finished cells as tables: per model the mean over seeds, with its spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas

from sae_lens_hsae.storage.whole_files import file_written_whole

Result = Mapping[str, Any]

CHILDREN_SHOWN = 4


@dataclass(frozen=True)
class Column:
    """A measure as it is shown."""

    title: str
    digits: int


@dataclass(frozen=True)
class ComparisonTable:
    """Models side by side.

    Attributes:
        values: one row per group, measure and place; columns are those of ``by``, then measure, place (level, or parent
            level of a boundary), mean, spread (half the range over the seeds), seeds (those that have the measure). A
            measure with an interval has its ends as measures of its name and ``_low`` or ``_high``.
        by: columns that tell the compared apart; the last is the model.
        columns: measures shown in Markdown, by name.
    """

    values: pandas.DataFrame
    by: tuple[str, ...]
    columns: Mapping[str, Column]

    def markdown(self) -> str:
        """One line per model, the values of levels or boundaries side by side, then the largest spread.

        A mean over fewer seeds than the line says has their number behind it; a measure of one seed has its interval.
        """
        titles = [*self.by, "seeds", *(column.title for column in self.columns.values())]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        for group, cells in self.values.groupby(list(self.by), sort=False):
            own = group if isinstance(group, tuple) else (group,)
            seeds = int(cells["seeds"].max())
            shown = [_shown(cells, name, column.digits, seeds) for name, column in self.columns.items()]
            lines.append(f"| {' | '.join([*map(_plain, own), str(seeds), *shown])} |")
        return "\n".join(lines)


PAPER_COLUMNS = {
    "variance_explained": Column("variance explained", 3),
    "variance_explained_ordinary": Column("of ordinary tokens", 3),
    "l0": Column("L0", 2),
    "n_dead": Column("dead", 0),
    "hamming": Column("Hamming", 2),
    "p_parent_given_child": Column("P(p\\|c)", 3),
    "p_child_given_parent": Column("P(c\\|p)", 3),
    "n_pairs_left_out": Column("pairs left out", 0),
}
OF_LEVELS = ("variance_explained", "variance_explained_ordinary", "l0", "l0_ordinary", "n_dead")

PLANTED_COLUMNS = {
    "precision": Column("precision", 3),
    "recall": Column("recall", 3),
    "f1": Column("F1", 3),
    "ancestor_precision": Column("ancestors' precision", 3),
    "ancestor_f1": Column("ancestors' F1", 3),
    "concepts_found": Column("concepts found", 3),
    "identity_share": Column("identity edges", 3),
    "absorption_within": Column("absorption within a level", 3),
    "absorption_across": Column("across levels", 3),
    **{name: column for name, column in PAPER_COLUMNS.items() if name != "variance_explained_ordinary"},
}

MEANING_COLUMNS = {
    "subsumed": Column("child's meaning under or equal", 3),
    "under": Column("strictly under", 3),
    "more_specific": Column("more specific", 3),
    "shuffled_subsumed": Column("under or equal, shuffled pairs", 3),
    "shuffled_under": Column("strictly under, shuffled pairs", 3),
    "n_pairs": Column("pairs", 0),
}


def paper_table(results: Iterable[Result]) -> ComparisonTable:
    """Table of cells that `paper_tables.reproduce` returns."""
    results = list(results)
    sinks = ("sinks",) if any("sinks" in cell for cell in results) else ()
    by = ("layer", "L0", *sinks, "model")
    rows = [
        {"layer": cell["layer"], "L0": cell["target_l0"], "model": cell["model"], **own}
        | {name: cell[name] for name in sinks}
        for cell in results
        for own in _hierarchy(cell)
    ]
    columns = dict(PAPER_COLUMNS)
    if not any(cell.get("n_outlying") for cell in results):
        del columns["variance_explained_ordinary"]
    return ComparisonTable(_over_seeds(rows, list(by)), by, columns)


def planted_table(results: Iterable[Result]) -> ComparisonTable:
    """Table of what `planted.reproduce_planted` returns."""
    rows = []
    for cell in results:
        found, absorption = cell["recovery"], cell["recovery"]["absorption"] or {}
        once = {
            **{name: found["direct"][name] for name in ("precision", "recall", "f1")},
            **{f"ancestor_{name}": found["ancestors"][name] for name in ("precision", "f1")},
            **{name: found[name] for name in ("concepts_found", "identity_share")},
            "absorption_within": absorption.get("within_level"),
            "absorption_across": absorption.get("across_levels"),
        }
        own = [{"measure": name, "place": 0, "value": value} for name, value in once.items()]
        rows += [{"model": cell["model"], **row} for row in [*own, *_hierarchy(cell["evaluation"])]]
    return ComparisonTable(_over_seeds(rows, ["model"]), ("model",), PLANTED_COLUMNS)


def meaning_table(results: Iterable[Result]) -> ComparisonTable:
    """Table of what `meaning.reproduce_meaning` returns: all boundaries together."""
    rows = []
    for cell in results:
        overall = cell["meaning"]["overall"]
        values = {"n_pairs": overall["n_pairs"], "more_specific": overall["forest"]["more_specific"]["value"]}
        for name in ("subsumed", "under"):
            estimate = overall["forest"][name]
            values |= {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
            values[f"shuffled_{name}"] = overall["shuffled"][name]["value"]
        rows += [{"model": cell["model"], "measure": m, "place": 0, "value": v} for m, v in values.items()]
    return ComparisonTable(_over_seeds(rows, ["model"]), ("model",), MEANING_COLUMNS)


def named_trees(results: Iterable[Result]) -> str:
    """The best and the worst trees of every model's first seed, by the names of their concepts, as Markdown."""
    lines = ["# Trees by their meaning", ""]
    shown: set[str] = set()
    for cell in results:
        if cell["model"] in shown:
            continue
        shown.add(cell["model"])
        meaning = cell["meaning"]
        for which in ("best", "worst"):
            trees = meaning[f"{which}_trees"]
            lines += [f"## {cell['model']}: {which} {len(trees)} of {meaning['n_trees']} trees", ""]
            lines += ["| root | score | subsumed | the root's concept | its children's |", "|---|---|---|---|---|"]
            for tree in trees:
                children = ", ".join(tree["children"][:CHILDREN_SHOWN])
                subsumed = f"{tree['n_subsumed']}/{tree['n_pairs']}"
                lines.append(f"| {tree['root']} | {tree['score']:.2f} | {subsumed} | {tree['concept']} | {children} |")
            lines.append("")
    return "\n".join(lines)


def write_table(name: str, table: ComparisonTable, folder: Path) -> str:
    """Write a table as ``name.csv`` and ``name.md`` into a folder, and return the Markdown."""
    with file_written_whole(folder / f"{name}.csv") as aside:
        table.values.to_csv(aside, index=False)
    text = table.markdown()
    with file_written_whole(folder / f"{name}.md") as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    return text


def write_rows(name: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write plain rows as ``name.csv`` and ``name.md``, one Markdown table for each set of columns; the Markdown."""
    with file_written_whole(folder / f"{name}.csv") as aside:
        pandas.DataFrame(rows).to_csv(aside, index=False)
    text = markdown_of(rows)
    with file_written_whole(folder / f"{name}.md") as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    return text


def markdown_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Plain rows as one Markdown table for each set of columns."""
    lines: list[str] = []
    for columns, own in groupby(rows, key=tuple):
        lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in own:
            cells = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row.values())
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def _hierarchy(evaluation: Result) -> list[dict[str, Any]]:
    """Long rows of `ForestEvaluation.to_dict`."""
    rows = []
    for level in evaluation["levels"]:
        rows += [{"measure": m, "place": level["level"], "value": level.get(m)} for m in OF_LEVELS]
    for boundary in evaluation["boundaries"]:
        measures = [name for name in PAPER_COLUMNS if name not in OF_LEVELS]
        rows += [{"measure": m, "place": boundary["parent_level"], "value": boundary[m]} for m in measures]
    return rows


def _over_seeds(rows: list[dict[str, Any]], by: list[str]) -> pandas.DataFrame:
    frame = pandas.DataFrame(rows)
    grouped = frame.astype({"value": float}).groupby([*by, "measure", "place"], sort=False)["value"]
    summary = grouped.agg(mean="mean", spread=lambda values: (values.max() - values.min()) / 2, seeds="count")
    return summary.reset_index()


def _shown(cells: pandas.DataFrame, measure: str, digits: int, seeds: int) -> str:
    own = cells.query("measure == @measure").sort_values("place")
    means = []
    for mean, counted in zip(own["mean"], own["seeds"], strict=True):
        fewer = f" ({counted} seed{'s' * (counted > 1)})" if 0 < counted < seeds else ""
        means.append(f"{mean:.{digits}f}{fewer}" if counted else "–")
    if own["seeds"].max() > 1:
        means.append(f"±{own['spread'].max():.{digits}f}")
    known = dict(zip(cells["measure"], cells["mean"], strict=True))
    low, high = (known.get(f"{measure}_{end}", math.nan) for end in ("low", "high"))
    if seeds == 1 and not math.isnan(low):
        means.append(f"[{low:.2f}, {high:.2f}]")
    return " ".join(means)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
