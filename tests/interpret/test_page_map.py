"""The explorer page's map of the forest."""

import pytest
import torch
from hostile_page import HOSTILE, leaf_of_all_levels, name_of, stream
from page_blocks import array_of, blocks_of
from small_saes import make_sae

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.page import write_page

pytestmark = pytest.mark.browser

CLICK = """const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
    const place = { clientX: box.left + arguments[0] * box.width, clientY: box.top + arguments[1], bubbles: true };
    canvas.dispatchEvent(new MouseEvent("click", place));"""


def test_a_click_in_the_map_zooms_in_and_then_opens(opened, hostile_page, hostile_sae):
    forest = hostile_sae.forest
    top = int(array_of(blocks_of(hostile_page)["forest"], "families")[0])
    n_leaves = sum(not forest.children(feature) for feature in forest.subtree(top))
    assert n_leaves > 1
    assert forest.levels.level_of(torch.tensor(top)) == 0
    opened.go("#/map")
    opened.run(CLICK, 0.001, 5)
    opened.wait(f"#/part/0/{n_leaves}")
    assert f"Inside {name_of(forest, top)}" in opened.text()
    opened.run(CLICK, 0.5, 5)
    opened.wait(f"#/f/{name_of(forest, top)}")
    opened.run("history.back()")
    opened.wait(f"#/part/0/{n_leaves}")
    whole = "const a = Array.from(document.querySelectorAll('.zoom a')).find((a) => a.textContent === 'Whole forest')"
    opened.run(f"{whole}; a.click()")
    n_all = sum(
        not forest.children(f) and forest.parent(f) is not None for f in range(forest.n_features)
    )  # leaves of trees; what stands alone is not drawn
    opened.wait(f"#/part/0/{n_all}")
    assert "Inside" not in opened.text()
    for wrong, shown in (
        ("#/part/9/2", "#/map"),
        ("#/part/1/999", f"#/part/0/{n_all}"),
        (f"#/part/{n_all}/{n_all + 2}", f"#/part/{n_all - 2}/{n_all}"),
    ):
        opened.go(wrong)
        assert opened.fragment() == shown
    assert opened.run("return document.querySelector('canvas').clientHeight / main.clientHeight") > 0.4
    assert opened.errors() == []


def test_where_features_are_too_narrow_a_click_zooms_in(browser, tmp_path):
    widths = [2, 3000]
    wide = make_sae(level_widths=widths)
    forest = FeatureForest([-1, -1, *([0] * 1500), *([1] * 1500)], widths)
    settings = DashboardSettings(window=2, n_top=1, n_sampled=0, n_counterexamples=0)
    data = collect_dashboards(wide, forest, stream(2), settings=settings, progress=False)
    browser.open(write_page(data, forest, tmp_path / "p.html", HOSTILE.__getitem__), "#/part/0/3000")
    browser.run(CLICK, 0.5, 200)
    browser.until(lambda: browser.fragment() != "#/part/0/3000", "the part")
    first, last = map(int, browser.fragment().split("/")[2:])
    assert last - first == pytest.approx(3000 / 8, abs=1)
    assert first < 1500 < last
    browser.wait(browser.fragment())
    follow = "Array.from(document.querySelectorAll('.zoom a')).find((a) => a.textContent === arguments[0]).click()"
    browser.run(follow, "Zoom in")
    browser.until(lambda: len(browser.text()) and browser.fragment() != f"#/part/{first}/{last}", "the nearer part")
    browser.wait(browser.fragment())
    browser.run(CLICK, 0.5, 200)
    browser.until(lambda: browser.fragment().startswith("#/f/1/"), "the feature")
    for root, middle in ((0, 750), (1, 2250)):
        browser.go(f"#/f/0/{root}")
        browser.run(CLICK, 0.5, 45)
        browser.until(lambda: browser.fragment().startswith("#/part/"), "the part of the map around it")
        first, last = map(int, browser.fragment().split("/")[2:])
        assert (first + last) / 2 == pytest.approx(middle, abs=2)
        assert last - first == pytest.approx(1500 / 8, abs=1)
    assert browser.errors() == []


def test_a_feature_is_outlined_on_the_map(opened, hostile_sae):
    leaf = name_of(hostile_sae.forest, leaf_of_all_levels(hostile_sae.forest))
    pixels = """const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
        const data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
        let found = 0;
        for (let i = 0; i < data.length; i += 4) found += data[i] === 10 && data[i + 1] === 88 && data[i + 2] === 202;
        return found"""
    opened.go("#/map")
    assert opened.run(pixels) == 0
    opened.go(f"#/f/{leaf}")
    opened.run("document.querySelector('.beside a:not([rel])').click()")
    opened.wait(f"#/map/{leaf}")
    opened.until(lambda: opened.run(pixels) > 100, "the outline")
    for none in ("9/9", "x"):
        opened.go(f"#/map/{none}")
        assert opened.run(pixels) == 0
    assert opened.errors() == []


def test_what_was_left_is_forgotten(opened):
    for _ in range(4):
        opened.go("#/map")
        opened.go("#/f/0/2")
    ask = opened.driver.execute_cdp_cmd
    kind = ask("Runtime.evaluate", {"expression": "HTMLCanvasElement.prototype"})["result"]["objectId"]
    alive = ask("Runtime.queryObjects", {"prototypeObjectId": kind})["objects"]["objectId"]
    length = {"objectId": alive, "functionDeclaration": "function() { return this.length; }"}
    assert ask("Runtime.callFunctionOn", length)["result"]["value"] <= 2
