"""What a notebook shows of a forest, an evaluation and a feature."""

import html
import re

import pytest
import torch
from small_saes import D_IN, WIDTHS, make_sae

from sae_lens_hsae import FeatureForest, evaluate_forest
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, FeatureCard, collect_dashboards

HOSTILE = ["<script>x</script>", " plain", "\u202eright", "a&b", "\x1b[31m"]


@pytest.fixture(scope="module")
def sae():
    sae = make_sae(seed=3)
    sae.threshold.data[-1] = 1e9  # the last feature never fires
    return sae


@pytest.fixture(scope="module")
def dashboards(sae):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(HOSTILE), (40, 12), generator=generator)
    x = torch.randn(40, 12, D_IN, generator=generator)
    settings = DashboardSettings(window=6, n_top=3)
    return collect_dashboards(sae, sae.forest, [(tokens, x)], settings=settings, progress=False)


def test_a_forest_shows_its_levels_and_largest_trees(sae):
    shown = sae.forest._repr_html_()
    rows = [re.findall(r"<td>([\d,]+)</td>", row) for row in re.findall("<tr>(.*?)</tr>", shown)[1:]]
    n_children = sae.forest.n_children
    for level, own in enumerate(sae.levels):
        unassigned = [f for f in range(own.start, own.stop) if level and sae.forest.parent(f) is None]
        below = n_children[own]
        numbers = (level, WIDTHS[level], len(unassigned), int((below > 0).sum()), int(below.max()))
        assert rows[level] == [str(number) for number in numbers]
    largest = max(sae.forest.roots().tolist(), key=lambda root: len(sae.forest.subtree(root)))
    tree = shown.split("<details>")[1]
    assert f"tree of 0/{largest}, {len(sae.forest.subtree(largest))} features" in tree
    assert [sae.levels.name(f) for f in sorted(sae.forest.subtree(largest))] == sorted(
        re.findall(r"<li>([\d/]+)", tree), key=lambda name: tuple(map(int, name.split("/")))
    )


def test_a_large_tree_is_cut_and_says_so():
    forest = FeatureForest([-1] + [0] * 300, [1, 300])
    shown = forest._repr_html_()
    assert shown.count("<li>") == 200
    assert "… 101 more" in shown


def test_an_evaluation_shows_the_tables_that_it_prints(sae):
    evaluation = evaluate_forest(sae, sae.forest, torch.randn(200, D_IN))
    assert html.unescape(evaluation._repr_html_()) == f"<pre>{evaluation}</pre>"


def test_a_feature_shows_its_numbers_and_contexts(sae, dashboards):
    feature = next(f for f in range(WIDTHS[0], 33) if sae.forest.parent(f) is not None and dashboards.n_firing[f])
    card = FeatureCard(dashboards, feature, HOSTILE.__getitem__)
    text = str(card)
    parent = sae.forest.parent(feature)
    assert text.startswith(f"feature 0/{parent} › " if parent < WIDTHS[0] else "feature ")
    assert f"fires on: {dashboards.frequency[feature]:.2%} of 480 tokens" in text
    assert f"P(parent | it): {dashboards.parent_given_child[feature]:.0%}" in text
    peak = HOSTILE[int(dashboards.token_ids[feature, 0, dashboards.peak_positions[feature, 0]])]
    assert f"[{peak}]".replace("\u202e", r"\u202e").replace("\x1b[", r"\x1b[") in text
    shown = card._repr_html_()
    assert shown.count("<p dir") == 3
    assert not any(hostile in shown for hostile in ("<script", "\u202e", "\x1b"))
    assert len(re.findall(r"rgba\(255, 164, 61, 1\.00\)", shown)) >= 1


def test_a_feature_that_never_fired_or_does_not_exist_says_so(dashboards):
    assert "fires on: 0.00% of 480 tokens" in str(FeatureCard(dashboards, 32, str))
    assert str(FeatureCard(dashboards, "2/19", str)) == str(FeatureCard(dashboards, 32, str))
    with pytest.raises(IndexError, match="feature 33 does not exist"):
        FeatureCard(dashboards, 33, str)
    with pytest.raises(ValueError, match="feature 'dates' is no name"):
        FeatureCard(dashboards, "dates", str)
