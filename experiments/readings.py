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
STRANGER, FOUND = "stranger", "found again"

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
            counts = [sum(row[reading] == verdict for row in own) for reading in READINGS if reading in own[0]]
            shares[verdict] = ", ".join(str(int(100 * count / len(own) + 0.5)) for count in counts)
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


def most_similar(rows: Sequence[Row], share_found: float) -> dict[str, Any]:
    """Tally as many edges as are found again, those of the highest similarity instead.

    The list holds as many edges of either kind, so each counts by how frequent its kind is among all edges.

    Args:
        rows: edges that are found again or not.
        share_found: of all edges.
    """
    n_found = sum(row["kind"] == FOUND for row in rows)
    weights = {True: share_found / n_found, False: (1 - share_found) / (len(rows) - n_found)}
    chosen: list[tuple[float, Row]] = []
    for row in sorted(rows, key=lambda row: -float(row["similarity"])):
        if sum(weight for weight, _ in chosen) < share_found:
            chosen.append((weights[row["kind"] == FOUND], row))
    total = sum(weight for weight, _ in chosen)
    tally: dict[str, Any] = {"pairs": "as many, the most similar", "read": len(chosen)}
    for verdict in VERDICTS:
        shares = [sum(weight for weight, row in chosen if row[each] == verdict) / total for each in READINGS]
        tally[verdict] = ", ".join(f"{100 * share:.0f}" for share in shares)
    return tally


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="+", type=Path, help="CSV: kind, similarity, parent, child, and one or two readings"
    )
    parser.add_argument("--share-found", type=float, default=0.29, help="of the edges, default %(default)s")
    chosen = parser.parse_args(arguments)
    for file in chosen.files:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        edges = [row for row in rows if row["kind"] != STRANGER]
        print(f"{file}: {len(edges)} pairs that are no strangers")
        if READINGS[1] in rows[0]:
            print("The readings agree on {:.2f} of them, κ {:.2f}".format(*agreement(edges)))
        by_kind = tallied(rows, lambda row: (row["kind"],))
        if {row["kind"] for row in edges} == {FOUND, f"not {FOUND}"}:
            clear = [row for row in edges if row["kind"] == FOUND and float(row["similarity"]) >= BANDS[2]]
            by_kind += [
                *tallied(clear, lambda _: ("found again, 0.5 and more",)),
                most_similar(edges, chosen.share_found),
            ]
        by_both = tallied(edges, lambda row: (row["kind"], band_of(row)))
        for table in (by_kind, by_both, tallied(edges, lambda row: (band_of(row),))):
            print(f"\n{markdown_of(table)}")
        print()


if __name__ == "__main__":
    main()
