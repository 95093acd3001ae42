"""Figures hold the numbers they are drawn from; the distances of siblings equal plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from planted import planted_dashboards
from small_saes import D_IN, WIDTHS, make_sae

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret import plots
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.plots.siblings import MAX_PER_FAMILY

N_LEVELS = len(WIDTHS)


@pytest.fixture(scope="module")
def sae():
    return make_sae(seed=3)


@pytest.fixture(scope="module")
def x():
    return torch.randn(700, D_IN, generator=torch.Generator().manual_seed(2))


def traces(figure: Any) -> Any:
    """Plotly's stubs do not tell what a figure holds."""
    return figure.data


def horizontal(figure: Any, place: int) -> Any:
    return figure.layout[f"xaxis{place + 1}" if place else "xaxis"]


def title_of(figure: Any) -> str:
    return figure.layout.title.text


def hand_made():
    """Two trees; 2/2 hangs under an unassigned feature, 2/3 is unassigned itself."""
    return FeatureForest([-1, -1, 0, 0, -1, 2, 3, 4, -1], [2, 3, 4])


def test_the_flow_has_every_edge_in_the_group_of_its_tree():
    figure = plots.forest_flow(hand_made(), n_trees=1)
    [sankey] = traces(figure)
    text = sankey.node.customdata
    flows = {
        (text[s], text[t]): v for s, t, v in zip(*(sankey.link[k] for k in ("source", "target", "value")), strict=True)
    }
    tree = "tree of 0/0"
    under = "under unassigned features"
    assert flows == {
        (f"level 0, {tree}: 1 features", f"level 1, {tree}: 2 features"): 2,
        (f"level 1, {tree}: 2 features", f"level 2, {tree}: 2 features"): 2,
        (f"level 1, {under}: 1 features", f"level 2, {under}: 2 features"): 1,
    }
    columns = dict(zip(text, sankey.node.x, strict=True))
    assert columns[f"level 1, {under}: 1 features"] == pytest.approx(0.5)
    assert "2 of them unassigned" in title_of(figure)
    names = dict(zip(text, sankey.node.label, strict=True))
    assert {at for at, name in names.items() if name} == {
        f"level 0, {tree}: 1 features",
        f"level 1, {under}: 1 features",
    }


def test_the_flow_names_only_what_has_room():
    parents = [*range(300), *([0] * 2700)]
    [sankey] = traces(plots.forest_flow(FeatureForest([-1] * 300 + parents, [300, 3000]), n_trees=3))
    assert set(sankey.node.label) == {"", "tree of 0/0", "the 297 other trees"}


def test_a_trees_picture_has_its_features_under_their_parents(sae):
    forest = sae.forest
    root = max(forest.roots().tolist(), key=lambda feature: len(forest.subtree(feature)))
    [icicle] = traces(plots.tree_picture(forest, root, {root: "<script>"}))
    assert list(icicle.ids) == [forest.levels.name(feature) for feature in forest.subtree(root)]
    parents = [forest.parent(feature) for feature in forest.subtree(root)]
    assert list(icicle.parents) == ["" if p is None else forest.levels.name(p) for p in parents]
    assert icicle.labels[0] == f"0/{root}  &lt;script>"
    assert set(icicle.marker.line.width) == {1}
    by_name = plots.tree_picture(forest, f"0/{root}", {f"0/{root}": "<script>"})
    assert by_name == plots.tree_picture(forest, root, {root: "<script>"})


def test_boxes_below_a_pixel_are_no_outlines():
    [icicle] = traces(plots.tree_picture(FeatureForest([-1, 0, 0, *([1] * 3000), 2], [1, 2, 3001]), 0))
    assert list(icicle.marker.line.width) == [1, 1, *([0] * 3002)]


def test_edge_quality_is_over_the_edges_of_each_boundary(sae, x):
    tokens = torch.zeros(7, 100, dtype=torch.int64)
    settings = DashboardSettings(window=4)
    dashboards = collect_dashboards(sae, sae.forest, [(tokens, x.view(7, 100, -1))], settings=settings, progress=False)
    figure = plots.edge_quality(dashboards)
    assert len(traces(figure)) == 3 * (N_LEVELS - 1)
    for level, (_, below) in enumerate(sae.levels.boundaries):
        edges = dashboards.parents[below] >= 0
        expected = dashboards.parent_given_child[below][edges]
        cosines = dashboards.parent_cosine[below][edges]
        for place, least, values in ((0, 0, expected[expected.isfinite()]), (2, -1, cosines)):
            bars = traces(figure)[place * (N_LEVELS - 1) + level]
            shares = [((values - x).abs() < 0.025).double().mean().item() for x in bars.x]
            assert bars.y == pytest.approx(shares)
            assert sum(bars.y) == pytest.approx(1)
            assert (bars.x[0], bars.x[-1]) == pytest.approx((least + 0.025, 0.975))
            assert horizontal(figure, place).range == (least, 1)


def test_edges_that_always_hold_are_in_the_last_bar():
    figure = plots.edge_quality(planted_dashboards({0: (0, 1), 4: (0,)}, {4: 0}))
    holds, half = traces(figure)[0], traces(figure)[2]
    assert list(holds.y) == [0] * 19 + [1]
    assert list(half.y) == [float(i == 10) for i in range(20)]


def test_sibling_distances_equal_plain_loops(sae, x, monkeypatch):
    k = 5
    monkeypatch.setattr("sae_lens_hsae.interpret.plots.siblings.N_STRONGEST", k)
    found = plots.sibling_distances(sae, sae.forest, x.split(97), progress=False)
    acts = sae.level_sae(2).encode(x).detach()
    forest, start = sae.forest, sae.levels[2].start
    centred = (x - x.mean(0)).double()
    tokens = {
        f: [int(t) for t in acts[:, f - start].argsort(descending=True)[:k] if acts[t, f - start] > 0]
        for f in found.features.tolist()
    }

    def distance(f, g):
        pairs = [(i, j) for i in tokens[f] for j in tokens[g] if i != j]
        each = [1 - torch.cosine_similarity(centred[i], centred[j], dim=0).item() for i, j in pairs]
        return sum(each) / len(each) if each else math.nan

    of_features = []
    for f in tokens:
        siblings = [distance(f, g) for g in tokens if g in forest.siblings(f)]
        unrelated = [distance(f, g) for g in tokens if forest.path(g)[0] != forest.path(f)[0]]
        if siblings and unrelated:
            of_features.append((np.nanmean(siblings), np.nanmean(unrelated)))
    siblings, unrelated = np.mean(of_features, axis=0)
    assert found.siblings.value == pytest.approx(siblings, abs=1e-4)
    assert found.unrelated.value == pytest.approx(unrelated, abs=1e-4)
    assert found.difference.value == pytest.approx(siblings - unrelated, abs=1e-4)
    assert found.siblings.low < found.siblings.value < found.siblings.high
    counts = found.families.unique(return_counts=True)[1]
    assert counts.max() <= MAX_PER_FAMILY
    sinks = torch.cat([x, 1000 * x[:7]])
    with_sinks = plots.sibling_distances(sae, sae.forest, sinks.split(97), progress=False)
    assert with_sinks.difference == found.difference, "outlying tokens decide nothing"


def test_without_siblings_there_is_nothing_to_compare(sae, x):
    bare = FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS)
    with pytest.raises(ValueError, match="no siblings to compare"):
        plots.sibling_distances(sae, bare, x, progress=False)
    silent = make_sae(seed=3)
    silent.threshold.data.fill_(1e9)
    with pytest.raises(ValueError, match="0 fire on these 700 ordinary tokens: no two siblings"):
        plots.sibling_distances(silent, silent.forest, x, progress=False)
