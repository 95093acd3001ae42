"""What readers said of the edges of ``gemma-edges``: ``python -m experiments.readings docs/edges_read.csv …``.

Prints three tables for each file: by what kind a pair is of, and, strangers left out, by kind and similarity, and by
similarity alone.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.tables import markdown_of

VERDICTS = ("refines", "same", "none")
READINGS = ("first reading", "second reading")
BANDS = (-2.0, 0.4, 0.5, 0.65, 1.0)
"""Ends of bands of the similarity; the lower one belongs to a band."""
STRANGER = "stranger"

Row = dict[str, str]


def tallied(rows: Sequence[Row], group_of: Callable[[Row], tuple[str, ...]]) -> list[dict[str, Any]]:
    """One row per group: how many were read, and of each of `VERDICTS` the percentage in either reading."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row)
    found = []
    for group, own in sorted(groups.items()):
        shares: dict[str, Any] = {"pairs": ", ".join(group), "read": len(own)}
        for verdict in VERDICTS:
            counts = [sum(row[reading] == verdict for row in own) for reading in READINGS]
            shares[verdict] = ", ".join(f"{100 * count / len(own):.0f}" for count in counts)
        found.append(shares)
    return found


def band_of(row: Row) -> str:
    """Which of `BANDS` the similarity is in."""
    similarity = float(row["similarity"])
    upper = next(end for end in BANDS[1:] if similarity < end or end == BANDS[-1])
    return f"{BANDS[BANDS.index(upper) - 1]:+.2f} to {upper:.2f}"


def agreement(rows: Sequence[Row]) -> tuple[float, float]:
    """Share of pairs on which the readings agree, and Cohen's κ."""
    readings = [[row[reading] for row in rows] for reading in READINGS]
    agree = sum(first == second for first, second in zip(*readings, strict=True)) / len(rows)
    shares = [[own.count(verdict) / len(rows) for verdict in VERDICTS] for own in readings]
    chance = sum(first * second for first, second in zip(*shares, strict=True))
    return agree, (agree - chance) / (1 - chance)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="+", type=Path, help="CSV: kind, similarity, parent, child, and the two readings"
    )
    for file in parser.parse_args(arguments).files:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        edges = [row for row in rows if row["kind"] != STRANGER]
        agree, kappa = agreement(edges)
        print(f"{file}: of the edges that are no strangers the readings agree on {agree:.2f}, κ {kappa:.2f}")
        by_kind = tallied(rows, lambda row: (row["kind"],))
        by_both = tallied(edges, lambda row: (row["kind"], band_of(row)))
        for table in (by_kind, by_both, tallied(edges, lambda row: (band_of(row),))):
            print(f"\n{markdown_of(table)}")
        print()


if __name__ == "__main__":
    main()
