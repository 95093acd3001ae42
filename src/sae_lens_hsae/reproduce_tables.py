"""Finished cells as a table: per model the mean over seeds, with its spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas

SHOWN = {
    "variance_explained": "variance explained",
    "l0": "L0",
    "n_dead": "dead",
    "hamming": "Hamming",
    "p_parent_given_child": "P(p\\|c)",
    "p_child_given_parent": "P(c\\|p)",
}
"""Measure → column; the first three per level, the others per level boundary."""


def write_table(name: str, results: Iterable[Mapping[str, Any]], folder: Path) -> str:
    """Write a table as ``name.csv`` and ``name.md`` into a folder, and return the Markdown."""
    table = table_of(results)
    table.to_csv(folder / f"{name}.csv", index=False)
    text = markdown(table)
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return text


def table_of(results: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """One row per layer, target L0, model and measure position, means and spreads over seeds.

    Args:
        results: cells as ``reproduce`` returns them.

    Returns:
        Columns layer, target_l0, model, measure, place (level, or parent level of a boundary), mean, spread (half the
        range over the seeds), seeds.
    """
    rows = []
    for cell in results:
        own = {name: cell[name] for name in ("layer", "target_l0", "model", "seed")}
        for level in cell["levels"]:
            rows += [own | {"measure": m, "place": level["level"], "value": level[m]} for m in list(SHOWN)[:3]]
        for boundary in cell["boundaries"]:
            rows += [
                own | {"measure": m, "place": boundary["parent_level"], "value": boundary[m]} for m in list(SHOWN)[3:]
            ]
    by = ["layer", "target_l0", "model", "measure", "place"]
    grouped = pandas.DataFrame(rows).groupby(by, sort=False)["value"]
    table = grouped.agg(mean="mean", spread=lambda values: (values.max() - values.min()) / 2, seeds="count")
    return table.reset_index()


def markdown(table: pandas.DataFrame) -> str:
    """The table as Markdown: one line per model, the levels' or boundaries' values side by side."""
    lines = ["| layer | L0 | model | seeds | " + " | ".join(SHOWN.values()) + " |", "|---" * (4 + len(SHOWN)) + "|"]
    for (layer, target, model), cells in table.groupby(["layer", "target_l0", "model"], sort=False):  # type: ignore[misc]
        values = [_values(cells[cells["measure"] == measure], measure) for measure in SHOWN]
        lines.append(f"| {layer} | {target:g} | {model} | {cells['seeds'].max()} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _values(cells: Any, measure: str) -> str:
    digits = {"n_dead": 0, "l0": 2, "hamming": 2}.get(measure, 3)
    means = " ".join(f"{mean:.{digits}f}" for mean in cells.sort_values("place")["mean"])
    spread = cells["spread"].max()
    return means if cells["seeds"].max() == 1 else f"{means} ±{spread:.{digits}f}"
