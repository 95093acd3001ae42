"""Bars for parents on planted trees."""

import pytest

from experiments.planted import bars
from experiments.planted.bars import BARS, bars_scored, reproduce_bars
from experiments.planted.trees import EASY


def test_a_higher_bar_leaves_some_of_the_edges():
    rows = bars_scored(EASY, seed=0, steps=60, n_samples=2_000)["rows"]
    assert [row["bar"] for row in rows] == list(BARS)
    edges = [row["edges"] for row in rows]
    assert edges == sorted(edges, reverse=True)
    assert edges[0] > edges[-1]
    assert all(0 <= row["F1"] <= 1 for row in rows)


def test_rows_are_means_over_the_seeds(tmp_path, monkeypatch):
    scores = {0: [0.5, 0.7], 1: [0.6, 0.6]}

    def scored(_, seed, *__):
        return {"rows": [{"bar": bar, "F1": f1} for bar, f1 in zip((0.2, 0.3), scores[seed], strict=True)]}

    monkeypatch.setattr(bars, "bars_scored", scored)
    rows = reproduce_bars(EASY, tmp_path, range(2), steps=1)
    assert rows == [
        pytest.approx({"bar": 0.2, "F1": 0.55, "± F1": 0.05}),
        pytest.approx({"bar": 0.3, "F1": 0.65, "± F1": 0.05}),
    ]
