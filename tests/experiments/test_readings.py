"""What readers said, tallied by hand."""

import csv

import pytest

from experiments.readings import agreement, main, most_similar

COLUMNS: tuple[str, ...] = ("kind", "similarity", "first reading", "second reading")
ROWS = [
    ("found again", "0.7", "same", "same"),
    ("found again", "0.3", "none", "refines"),
    ("not found again", "0.5", "refines", "refines"),
    ("stranger", "", "none", "none"),
]


def test_edges_are_tallied_by_kind_and_by_similarity(tmp_path, capsys):
    with (tmp_path / "read.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *ROWS])
    main([str(tmp_path / "read.csv"), "--share-found", "0.5"])
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        for table in capsys.readouterr().out.split("\n\n")[1:4]
    ]
    assert tables[0] == [
        ["found again", "2", "0, 50", "50, 50", "50, 0"],
        ["not found again", "1", "100, 100", "0, 0", "0, 0"],
        ["stranger", "1", "0, 0", "0, 0", "100, 100"],
        ["found again, 0.5 and more", "1", "0, 0", "100, 100", "0, 0"],
        ["as many, the most similar", "2", "67, 67", "33, 33", "0, 0"],
    ]
    assert [row[0] for row in tables[1]] == [
        "found again, +0.65 to 1.00",
        "found again, -2.00 to 0.40",
        "not found again, +0.50 to 0.65",
    ]
    assert tables[2] == [
        ["+0.50 to 0.65", "1", "100, 100", "0, 0", "0, 0"],
        ["+0.65 to 1.00", "1", "0, 0", "100, 100", "0, 0"],
        ["-2.00 to 0.40", "1", "0, 100", "0, 0", "100, 0"],
    ]


def test_the_most_similar_edges_are_weighted_by_how_frequent_their_kind_is():
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS[:3]]
    # 0.3 of all edges stand for two rows found again, 0.7 for the other: 0.15 of the first is not enough.
    tally = most_similar(rows, 0.3)
    assert (tally["read"], tally["same"], tally["refines"]) == (2, "18, 18", "82, 82")


def test_agreement_and_kappa():
    share, kappa = agreement([dict(zip(COLUMNS, row, strict=True)) for row in ROWS[:3]])
    chance = 1 / 3 * 2 / 3 + 1 / 3 * 1 / 3
    assert share == pytest.approx(2 / 3)
    assert kappa == pytest.approx((2 / 3 - chance) / (1 - chance))
