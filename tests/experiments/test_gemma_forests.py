"""How Gemma's forests are counted, on forests whose counts are known."""

import math
from typing import Any, cast

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

import experiments.gemma_forests as gemma_forests
from experiments.gemma_forests import BARS, _of_living, _stability, _trees_of, gemma_bars
from experiments.paper_tables import Size
from sae_lens_hsae.forest import FeatureForest

WIDTHS = [2, 4]


def sae_of(directions: torch.Tensor) -> StandardSAE:
    sae = StandardSAE(StandardSAEConfig(d_in=directions.shape[1], d_sae=len(directions), apply_b_dec_to_input=False))
    sae.W_dec.data = directions.clone()
    return sae


@pytest.fixture
def saes() -> list[StandardSAE]:
    axes = torch.eye(6)
    return [sae_of(axes[:2]), sae_of(axes[2:])]


def test_edges_of_features_that_never_fire_do_not_count(saes):
    forest = FeatureForest([-1, -1, 0, 0, 0, 1], WIDTHS)
    fires = torch.zeros(10, 6, dtype=torch.bool)
    fires[:, 0] = True  # 1 never fires, and neither does 4
    fires[:4, 2], fires[:8, 3], fires[:, 5] = True, True, True
    fires[9, 0] = False
    living, parent_given_child = _of_living(forest, fires)
    assert living.parents.tolist() == [-1, -1, 0, 0, -1, -1]
    assert parent_given_child.tolist() == [1, 1]
    counted = _trees_of([(saes, living, parent_given_child)])
    assert counted["features in trees of 3 concepts"] == 3 / 6
    assert counted["roots with a child"] == 1 / 2
    assert (counted["edges"], counted["copies among them"], counted["P(parent given child)"]) == (2, 0, 1)


def test_edges_found_again_are_counted_of_all_and_of_matched_ones(saes):
    forest, other = FeatureForest([-1, -1, 0, 0, 1, 1], WIDTHS), FeatureForest([-1, -1, 0, 1, 1, 1], WIDTHS)
    none = torch.ones(4)
    found = _stability([(saes, forest, none), (saes, other, none)])
    assert found["edges that another seed has"] == 3 / 4
    # Of the other stack only the first child has a match.
    turned = [saes[0], sae_of(torch.eye(6)[2:].roll(1, 1).index_copy(0, torch.tensor([0]), torch.eye(6)[2:3]))]
    turned[1].W_dec.data[1:] = torch.tensor([[1.0, 1, 0, 1, 1, 1]]) / math.sqrt(5)
    found = _stability([(saes, forest, none), (turned, forest, none)])
    assert found["edges that another seed has"] == 1 / 4


def test_an_edge_that_is_no_copy_is_found_where_another_seed_has_it_as_a_copy():
    axes = torch.eye(4)

    def stack(cosine):
        child = cosine * axes[0] + math.sqrt(1 - cosine**2) * axes[3]
        return [sae_of(axes[:2]), sae_of(torch.stack([child, axes[1], axes[2]]))]

    forest, none = FeatureForest([-1, -1, 0, 1, 0], [2, 3]), torch.ones(3)
    # The first child is a copy in one of the two seeds, the second in both, and the third in neither.
    found = _stability([(stack(0.75), forest, none), (stack(0.85), forest, none)])
    assert found["edges that another seed has"] == found["without copies"] == 1
    lost = FeatureForest([-1, -1, 1, 1, 0], [2, 3])
    found = _stability([(stack(0.75), forest, none), (stack(0.85), lost, none)])
    assert found["without copies"] == (1 / 2 + 1 / 2) / 2  # of two edges each has one that the other has


def test_a_bar_takes_away_the_edges_below_it(tmp_path, monkeypatch):
    """Of five children under one parent one is as similar to it as each bar allows, and a little more."""
    x = torch.zeros(50_000, 7)
    x[:5000, 0] = 1  # the parent, so that twice its frequency is 0.2
    for child, similarity in zip(range(2, 7), BARS, strict=True):
        n_with_parent = round((similarity + 0.2 + 0.03) * 4000)  # the lower end is 0.015 below
        x[:n_with_parent, child] = x[5000 : 9000 - n_with_parent, child] = 1
    saes = [sae_of(torch.eye(7)[:2]), sae_of(torch.eye(7)[2:])]
    for sae in saes:
        sae.W_enc.data, sae.b_enc.data = sae.W_dec.data.T.clone(), torch.zeros(len(sae.W_dec))
    monkeypatch.setattr(gemma_forests, "SHAPES", {})
    monkeypatch.setattr(gemma_forests, "stack_with_parents", lambda *_: (saes, None))
    rows = gemma_bars(cast("Any", lambda *_: x), tmp_path, Size(seeds=1, held_out=50_000), layer=9)
    rows = [row for row in rows if row["model"] == "HSAE"]
    assert [row["bar"] for row in rows] == list(BARS)
    assert [row["edges"] for row in rows] == [5, 4, 3, 2, 1]
    assert [row["features in trees of 3 concepts"] for row in rows] == pytest.approx([6 / 7, 5 / 7, 4 / 7, 3 / 7, 0])
