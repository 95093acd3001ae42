"""What a notebook shows of a forest, an evaluation and a feature."""

import html
import re

import torch
from small_saes import D_IN, WIDTHS

from sae_lens_hsae import FeatureForest, evaluate_forest


def test_a_forest_shows_its_levels_and_largest_trees(hostile_sae):
    sae = hostile_sae
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


def test_an_evaluation_shows_the_tables_that_it_prints(hostile_sae):
    evaluation = evaluate_forest(hostile_sae, hostile_sae.forest, torch.randn(200, D_IN))
    assert html.unescape(evaluation._repr_html_()) == f"<pre>{evaluation}</pre>"
