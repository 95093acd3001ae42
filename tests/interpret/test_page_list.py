"""The explorer page's list of trees: links, keyboard, filters, order."""

import re
from dataclasses import replace

import pytest
import torch
from hostile_page import HOSTILE, leaf_of_all_levels, name_of
from planted import planted_dashboards
from small_saes import WIDTHS

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.labels import label_detection
from sae_lens_hsae.interpret.page import write_page

pytestmark = pytest.mark.browser


def test_a_deep_link_opens_the_branch_and_back_returns(opened, hostile_page, hostile_sae):
    forest = hostile_sae.forest
    leaf = leaf_of_all_levels(forest)
    root, middle, _ = forest.path(leaf)
    opened.open(hostile_page, f"#/f/{name_of(forest, leaf)}")
    selected = opened.run("return document.querySelector('[aria-selected=true]').innerText")
    assert selected.startswith(name_of(forest, leaf))
    assert opened.texts(".path .id") == [name_of(forest, feature) for feature in (root, middle, leaf)]
    # Chromium skips on the way back what was left without a real click.
    opened.driver.find_elements("css selector", ".path a")[1].click()
    opened.wait(f"#/f/{name_of(forest, middle)}")
    assert name_of(forest, leaf) in opened.text()
    opened.driver.find_element("css selector", "a.action").click()
    opened.wait(f"#/compare/{name_of(forest, middle)}")
    opened.run("history.back()")
    opened.wait(f"#/f/{name_of(forest, middle)}")
    opened.run("history.back()")
    opened.wait(f"#/f/{name_of(forest, leaf)}")
    assert opened.run("return document.title").startswith(name_of(forest, leaf))


def test_the_tree_is_walked_by_keyboard(opened, hostile_sae):
    forest = hostile_sae.forest
    opened.run("document.getElementById('tree').focus()")
    order = sorted(
        (f for f in range(forest.n_features) if forest.parent(f) is None and forest.children(f)),
        key=lambda f: -len(forest.subtree(f)),
    )
    assert opened.rows()[: len(order)] == [name_of(forest, f) for f in order]
    parent = order[1]
    opened.keys("\ue015")
    assert opened.active_row().startswith(name_of(forest, parent))
    assert opened.run("return document.querySelector('.row.active').getAttribute('aria-expanded')") == "false"
    opened.keys("\ue014")
    assert opened.run("return document.querySelector('.row.active').getAttribute('aria-expanded')") == "true"
    opened.keys("\ue014")
    child = opened.active_row().split("\n")[0]
    assert child in {name_of(forest, f) for f in forest.children(parent)}
    assert opened.run("return document.querySelector('.row.active').getAttribute('aria-level')") == "2"
    opened.keys("\ue007")
    opened.wait(f"#/f/{child}")
    assert opened.run("return document.activeElement.id") == "tree"
    opened.keys("\ue012")
    assert opened.active_row().startswith(name_of(forest, parent))
    opened.keys("\ue012")
    assert opened.run("return document.querySelector('.row.active').getAttribute('aria-expanded')") == "false"
    opened.keys("\ue012")
    assert opened.active_row().startswith(name_of(forest, parent)), "above the top there is nothing to go to"
    opened.keys("\ue010")
    assert "Standing alone" in opened.active_row()
    opened.keys("\ue012")
    assert "Standing alone" in opened.active_row()
    opened.keys("\ue014", "\ue015")
    alone = opened.active_row().split("\n")[0]
    assert alone in {name_of(forest, f) for f in range(forest.n_features) if len(forest.subtree(f)) == 1}
    opened.keys("\ue007")
    opened.wait(f"#/f/{alone}")
    opened.keys("\ue011")
    assert opened.active_row().startswith(name_of(forest, order[0]))


def test_filters_keep_the_way_to_what_matches(opened, hostile_sae, hostile_dashboards):
    forest = hostile_sae.forest
    leaf = leaf_of_all_levels(forest)
    opened.run("const t = document.getElementById('filter-text'); t.focus()")
    opened.keys(name_of(forest, leaf))
    rows = opened.rows()
    for feature in forest.path(leaf):
        assert name_of(forest, feature) in rows
    assert " of 33 features" in opened.texts("#count")[0]
    opened.choose("filter-text", "markup")
    assert opened.rows() == ["0/2"]
    opened.choose("filter-text", "no such thing")
    assert "No feature matches" in opened.run("return document.getElementById('tree').innerText")
    opened.choose("filter-text", "")
    opened.choose("filter-frequency", "never")
    assert f"2/{WIDTHS[2] - 1}" in opened.rows()
    opened.choose("filter-frequency", "")
    trees = [f for f in range(forest.n_features) if forest.parent(f) is None and forest.children(f)]
    detected = label_detection(hostile_dashboards, HOSTILE.__getitem__).score.nan_to_num(-1).tolist()
    for key, heading, values, written in (
        ("number", "", [-f for f in range(forest.n_features)], lambda _: ""),
        ("", "features in its tree", [len(forest.subtree(f)) for f in range(forest.n_features)], str),
        ("detection", "detection by tokens", detected, lambda v: f"{v:.2f}" if v >= 0 else "–"),
        (
            "frequency",
            "share of tokens it fires on",
            hostile_dashboards.frequency.tolist(),
            lambda v: f"{100 * v:.0f} %",
        ),
    ):
        opened.choose("sort", key)
        order = sorted(trees, key=lambda f: (-values[f], f))[:4]
        assert opened.rows()[:4] == [name_of(forest, f) for f in order], key
        assert opened.texts(".row .share")[:4] == [written(values[f]) for f in order], "the number it is sorted by"
        assert opened.texts("#column") == [heading]


def test_back_leads_to_where_one_was(opened, hostile_sae):
    leaf = f"#/f/{name_of(hostile_sae.forest, leaf_of_all_levels(hostile_sae.forest))}"
    at = "return Math.round(document.getElementById('main').scrollTop)"
    opened.go(leaf)
    opened.run("document.getElementById('main').scrollTop = 300")
    # Chromium skips on the way back what was left without a real click.
    opened.driver.find_element("css selector", ".row .name").click()
    opened.until(lambda: opened.fragment() != leaf, "the row's feature")
    other = opened.fragment()
    opened.wait(other)
    assert opened.run(at) == 0
    opened.run("document.getElementById('main').scrollTop = 200")
    opened.until(lambda: (opened.run("return history.state") or {}).get("scroll") == 200, "the place")
    opened.choose("filter-level", "1")
    opened.run("history.back()")
    opened.wait(leaf)
    assert opened.run(at) == 300
    opened.run("history.forward()")
    opened.wait(other + "?level=1")
    assert opened.run(at) == 200
    assert opened.errors() == []


def test_back_leads_to_the_card_one_left(browser, tmp_path):
    words = [" alpha", " beta", " gamma", " delta", " epsilon", " zeta", " theta", " kappa"]
    data = planted_dashboards({feature: (feature % 8,) for feature in range(2, 32)}, widths=[2, 30])
    browser.anew(write_page(data, data.forest, tmp_path / "p.html", words.__getitem__))
    for _ in range(2):
        browser.run("document.querySelector('.more').click()")
    assert len(browser.texts(".card")) == 18
    browser.run("document.getElementById('main').scrollTop = 1200")
    browser.until(lambda: (browser.run("return history.state") or {}).get("scroll") == 1200, "the place")
    browser.driver.find_element("css selector", ".row .name").click()
    browser.keys("\ue014", "\ue015", "\ue007")
    browser.until(lambda: browser.fragment().startswith("#/f/"), "the feature")
    browser.wait(browser.fragment())
    browser.run("history.back()")
    browser.wait("#/")
    assert len(browser.texts(".card")) == 18
    assert browser.run("return document.getElementById('main').scrollTop") == 1200
    assert browser.errors() == []


def test_the_tops_of_trees_are_stepped_through_in_the_order_of_the_first_view(opened):
    trees = opened.run(
        "return [...document.querySelectorAll('.card.tree')].map((each) => each.querySelector('a').hash)"
    )
    assert len(trees) > 1
    opened.go(trees[0])
    for key, tree in (("j", trees[1]), ("k", trees[0]), ("k", trees[0])):
        opened.keys(key)
        opened.wait(tree)


def test_keys_scroll_what_was_opened(opened):
    at = "return document.getElementById('main').scrollTop"
    assert opened.run("return document.activeElement === document.body"), "Tab begins at the top"
    for fragment in ("#/f/0/2", "#/f/1/3"):
        opened.go(fragment)
        assert opened.run("return document.activeElement.tagName") == "H1"
        assert opened.run(at) == 0
        opened.keys("\ue00f")
        opened.until(lambda: (opened.run("return history.state") or {}).get("scroll", 0) > 0, "what is further down")
    opened.run("document.getElementById('filter-text').focus()")
    opened.go("#/f/0/2")
    assert opened.run("return document.activeElement.id") == "filter-text"


def test_weak_edges_can_be_left_out(opened, hostile_dashboards, tmp_path):
    dashboards = replace(hostile_dashboards, n_tokens=20 * hostile_dashboards.n_tokens)  # parents fire less often
    forest = dashboards.forest
    parents = forest.parents
    opened.open(write_page(dashboards, forest, tmp_path / "page.html", HOSTILE.__getitem__))
    similarity = dashboards.parent_given_child - 2 * dashboards.frequency[parents.clamp(min=0)]
    cut = (parents >= 0) & ~dashboards.is_copy & ~(similarity >= 0.5)
    whole = opened.run("return document.getElementById('count').textContent")
    weak, kept = int(cut.nonzero()[0]), int(((parents >= 0) & ~cut).nonzero()[0])
    opened.choose("edges", "not-weak")
    assert opened.fragment() == "#/?edges=not-weak"
    n_own = int(((parents >= 0) & ~dashboards.is_copy).sum())
    said = f"Edges below similarity 0.5 are left out: {int(cut.sum())} of {n_own}, copies aside. "
    assert opened.texts(".notice") == [said + "Show all edges"]
    assert opened.texts("#menu") == ["Forest (filtered)"]
    expected = FeatureForest(torch.where(cut, -1, parents), forest.level_widths)
    n_trees = sum(len(expected.subtree(f)) > 1 for f in range(len(forest)) if expected.parent(f) is None)
    assert opened.run("return document.getElementById('count').textContent").startswith(f"{n_trees} trees, ")
    opened.go(f"#/f/{name_of(forest, weak)}?edges=not-weak")
    assert f"Hidden: {name_of(forest, int(parents[weak]))}" in opened.text().replace("\n", " ")
    assert opened.texts(".path .id") == [name_of(forest, weak)]
    opened.go(f"#/f/{name_of(forest, int(parents[weak]))}?edges=not-weak")
    assert " hidden)" in opened.texts(".lead")[0], "the sentence counts all children"
    opened.go(f"#/f/{name_of(forest, kept)}?edges=not-weak")
    assert name_of(forest, int(parents[kept])) in opened.texts(".path .id")
    opened.go("#/?edges=not-weak")
    opened.run("document.querySelector('.notice button').click()")
    assert opened.fragment() == "#/"
    assert opened.texts("#menu") == ["Forest"]
    assert opened.run("return document.getElementById('count').textContent") == whole
    opened.go(f"#/f/{name_of(forest, weak)}")
    assert opened.texts(".path .id")[-2] == name_of(forest, int(parents[weak]))
    assert opened.errors() == []


def test_a_link_holds_the_filter_the_order_and_the_colours(opened, hostile_page):
    opened.run("document.getElementById('filter-text').focus()")
    opened.keys("a & b?#=é")
    opened.choose("filter-level", "0")
    opened.choose("sort", "detection")
    opened.run("document.getElementById('hide-copies').click()")
    opened.go(opened.fragment().replace("#/", "#/map"))
    colours = "return document.querySelector('.ramp').parentElement.querySelector('select')"
    opened.run(f"const s = (() => {{ {colours} }})(); s.value = 'agreement'; s.dispatchEvent(new Event('change'))")
    link = opened.fragment()
    assert re.fullmatch(r"#/map\?text=[^#?&]*&level=0&sort=detection&copies=hidden&colour=agreement", link)
    opened.run("document.getElementById('home').click()")
    opened.wait(link.replace("#/map?", "#/?"))  # a link of the page's own keeps them
    rows = opened.rows()

    opened.open(hostile_page, link)
    assert opened.run("return document.getElementById('filter-text').value") == "a & b?#=é"
    assert opened.run("return document.getElementById('filter-level').value") == "0"
    assert opened.run("return document.getElementById('sort').value") == "detection"
    assert opened.run("return document.getElementById('hide-copies').checked")
    assert opened.run(f"{colours}.value") == "agreement"
    assert opened.rows() == rows
    opened.open(hostile_page, "#/f/0/1?level=nonsense&sort=number&copies=nonsense&colour=nonsense")
    assert opened.run("return document.getElementById('filter-level').value") == ""
    assert not opened.run("return document.getElementById('hide-copies').checked")
    assert opened.fragment() == "#/f/0/1?sort=number"
    opened.go("#/search/what?")
    assert opened.run("return document.getElementById('query').value") == "what?"
    assert opened.errors() == []


def test_a_link_without_filters_shows_none(opened, hostile_sae):
    leaf = leaf_of_all_levels(hostile_sae.forest)
    level = "return document.getElementById('filter-level').value"
    first = f"#/f/{name_of(hostile_sae.forest, leaf)}"
    opened.go(first)
    opened.choose("filter-level", "2")
    assert opened.fragment() == f"{first}?level=2"
    # Chromium skips on the way back what was left without a real click.
    opened.driver.find_element("link text", "Map").click()
    opened.wait("#/map?level=2")
    opened.choose("filter-level", "")
    assert opened.fragment() == "#/map"
    opened.run("history.back()")
    opened.wait(f"{first}?level=2")
    assert opened.run(level) == "2"
    opened.run("history.forward()")
    opened.wait("#/map")
    assert opened.run(level) == ""
    opened.choose("filter-level", "1")
    for pasted in ("#/f/0/3", "#feature=0/3"):
        opened.go(pasted)
        assert opened.run(level) == ""
        assert "level" not in opened.fragment()
    assert opened.errors() == []
