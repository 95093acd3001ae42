"""Figures hold the numbers they are drawn from; the measure behind the siblings' map equals plain loops."""

import math
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
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


def history(n: int = 5):
    names = ("l0", "l0_ema", "l0_coefficient", "mse", "explained_variance", "dead_features", "unassigned_share")
    for step in range(n):
        level_metrics = {
            f"metrics/level_{level}_{name}": 100.0 * level + 10 * i + step
            for level in range(N_LEVELS)
            for i, name in enumerate(names)
            if level or name != "unassigned_share"
        }
        yield {"_step": 10 * step, "losses/structural_loss": 1.0 / (step + 1), **level_metrics}


def traces(figure: Any) -> Any:
    """Plotly's stubs do not tell what a figure holds."""
    return figure.data


def title_of(figure: Any) -> str:
    return figure.layout.title.text


def lines(figure):
    """The (x, y) of every trace, as lists."""
    return [(list(trace.x), list(trace.y)) for trace in traces(figure)]


def test_training_curves_draw_every_metric_of_every_level():
    rows = [*history(), {"_step": 44, "metrics/ce_loss": 1.0}]  # an evaluation's row, logged between two steps
    figure = plots.training_curves(rows)
    drawn = lines(figure)
    steps = [0, 10, 20, 30, 40]
    for level in range(N_LEVELS):
        for i, name in ((4, "explained_variance"), (3, "mse"), (5, "dead_features"), (6, "unassigned_share")):
            curve = (steps, [100.0 * level + 10 * i + step for step in range(5)])
            assert (curve in drawn) == (level > 0 or name != "unassigned_share")
    assert (steps, [1.0 / (step + 1) for step in range(5)]) in drawn
    assert lines(plots.training_curves(pd.DataFrame(rows))) == drawn


def test_sparsity_curves_show_l0_beside_its_target():
    figure = plots.sparsity_curves(list(history()), [3.0, 4.0, 5.0])
    drawn = lines(figure)
    for level, target in enumerate((3.0, 4.0, 5.0)):
        assert ([0, 40], [target, target]) in drawn
        for i in range(3):
            assert ([0, 10, 20, 30, 40], [100.0 * level + 10 * i + step for step in range(5)]) in drawn
    for few in ([3, 4], 3):
        with pytest.raises(ValueError, match=r"numbers for 3 levels; give cfg\.target_l0_per_level"):
            plots.sparsity_curves(list(history()), few)
    with pytest.raises(ValueError, match="no column 'metrics/level_0_l0'"):
        plots.training_curves([{"_step": 1, "losses/overall_loss": 2.0}])


def test_distributions_count_what_fires(sae, x):
    figure = plots.activation_distributions(sae, x.split(123), n_tokens=600, progress=False)
    acts = [sae.level_sae(level).encode(x[:600]) for level in range(N_LEVELS)]
    heat = traces(figure)[0].z
    assert heat.shape == (200, sum(WIDTHS) + 2 * (N_LEVELS - 1))
    order = (acts[0] > 0).sum(0).argsort(descending=True, stable=True)
    assert np.allclose(heat[:, : WIDTHS[0]], acts[0][:200, order].detach())
    for level, of_level in enumerate(acts):
        frequency, l0, magnitude = traces(figure)[1 + 3 * level : 4 + 3 * level]
        share = (of_level > 0).double().mean(0)
        assert np.allclose(frequency.x, share[share > 0].log10())
        assert frequency.name == f"level {level} ({int((share == 0).sum())} never fired)"
        counted = torch.bincount((of_level > 0).sum(1)) / 600
        assert np.allclose(l0.y, counted)
        assert sum(magnitude.y) == pytest.approx(1)
        assert np.average(magnitude.x, weights=magnitude.y) == pytest.approx(
            of_level[of_level > 0].mean().item(), rel=0.05
        )
    with pytest.raises(ValueError, match="held no token"):
        plots.activation_distributions(sae, [], progress=False)


def hand_made():
    """Two trees; 2/2 hangs under an unassigned feature, 2/3 is unassigned itself."""
    return FeatureForest([-1, -1, 0, 0, -1, 2, 3, 4, -1], [2, 3, 4])


def test_the_flow_has_every_edge_in_the_group_of_its_tree():
    figure = plots.forest_flow(hand_made(), n_trees=1, names={0: "a <b>"})
    [sankey] = traces(figure)
    text = sankey.node.customdata
    flows = {
        (text[s], text[t]): v for s, t, v in zip(*(sankey.link[k] for k in ("source", "target", "value")), strict=True)
    }
    tree = "tree of 0/0 a &lt;b>"
    under = "under unassigned features"
    assert flows == {
        (f"level 0, {tree}: 1 features", f"level 1, {tree}: 2 features"): 2,
        (f"level 1, {tree}: 2 features", f"level 2, {tree}: 2 features"): 2,
        (f"level 1, {under}: 1 features", f"level 2, {under}: 2 features"): 1,
    }
    columns = dict(zip(text, sankey.node.x, strict=True))
    assert columns[f"level 1, {under}: 1 features"] == pytest.approx(0.5)
    assert "2 of them unassigned" in title_of(figure)


def test_a_trees_picture_has_its_features_under_their_parents(sae):
    forest = sae.forest
    root = max(forest.roots().tolist(), key=lambda feature: len(forest.subtree(feature)))
    [icicle] = traces(plots.tree_picture(forest, root, {root: "<script>"}))
    assert list(icicle.ids) == [forest.levels.name(feature) for feature in forest.subtree(root)]
    parents = [forest.parent(feature) for feature in forest.subtree(root)]
    assert list(icicle.parents) == ["" if p is None else forest.levels.name(p) for p in parents]
    assert icicle.labels[0] == f"0/{root}  &lt;script>"
    with pytest.raises(IndexError, match="feature 99 does not exist"):
        plots.tree_picture(forest, 99)


def test_edge_quality_is_over_the_edges_of_each_boundary(sae, x):
    tokens = torch.zeros(7, 100, dtype=torch.int64)
    settings = DashboardSettings(window=4)
    dashboards = collect_dashboards(sae, sae.forest, [(tokens, x.view(7, 100, -1))], settings=settings, progress=False)
    figure = plots.edge_quality(dashboards)
    assert len(traces(figure)) == 3 * (N_LEVELS - 1)
    for level, (_, below) in enumerate(sae.levels.boundaries):
        edges = dashboards.parents[below] >= 0
        expected = dashboards.parent_given_child[below][edges]
        assert traces(figure)[level].x == pytest.approx(expected[expected.isfinite()].numpy())
        cosines = traces(figure)[2 * (N_LEVELS - 1) + level].x
        assert cosines == pytest.approx(dashboards.parent_cosine[below][edges].numpy())


def test_sibling_distances_equal_plain_loops(sae, x):
    k = 5
    found = plots.sibling_distances(sae, sae.forest, x.split(97), n_strongest=k, progress=False)
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


def test_the_map_shows_each_triggering_activation_once(sae, x, monkeypatch):
    found = plots.sibling_distances(sae, sae.forest, x, n_strongest=4, progress=False)
    figure = plots.sibling_map(found, n_families=2, reduce=lambda points: points[:, :2])
    n_points = int((found.x.abs().sum(2) > 0).sum())
    assert traces(figure)[0].name == "other features"
    assert sum(len(trace.x) for trace in traces(figure)) == n_points
    assert str(found.difference) in title_of(figure)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"pip install 'sae-lens-hsae\[plots\]'"):
        plots.sibling_map(found)
    with pytest.raises(ValueError, match="n_families=9"):
        plots.sibling_map(found, n_families=9)


def test_without_siblings_there_is_nothing_to_compare(sae, x):
    bare = FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS)
    with pytest.raises(ValueError, match="no siblings to compare"):
        plots.sibling_distances(sae, bare, x, progress=False)
    silent = make_sae(seed=3)
    silent.threshold.data.fill_(1e9)
    with pytest.raises(ValueError, match="0 fire on these 700 tokens: no two siblings"):
        plots.sibling_distances(silent, silent.forest, x, progress=False)
    with pytest.raises(IndexError, match="level 3 does not exist"):
        plots.sibling_distances(sae, sae.forest, x, level=3, progress=False)
