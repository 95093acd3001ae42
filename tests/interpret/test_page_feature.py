"""The explorer page's views of a feature, of a parent beside its children, and of a search."""

import re
from dataclasses import replace

import pytest
import torch
from hostile_page import HOSTILE, name_of
from planted import planted_dashboards
from small_saes import WIDTHS

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.labels import label_detection
from sae_lens_hsae.interpret.page import write_page

pytestmark = pytest.mark.browser


def test_a_feature_shows_its_numbers(opened, hostile_sae, hostile_dashboards):
    forest = hostile_sae.forest
    child = next(f for f in range(WIDTHS[0], forest.n_features) if forest.parent(f) is not None)
    opened.go(f"#/f/{name_of(forest, child)}")
    text = opened.text()
    n, both = hostile_dashboards.n_firing[child], hostile_dashboards.n_with_parent[child]
    assert f"Fires on {n} of 1,200 tokens ({n / 12:.0f} %). On {both} of them ({both / n * 100:.0f} %)" in text
    assert f"{hostile_dashboards.parent_cosine[child]:.2f}" in text
    detection = label_detection(hostile_dashboards, HOSTILE.__getitem__)
    counts = f"on {detection.n_firing[child]} firing and {detection.n_silent[child]} silent words"
    assert f"Detection by tokens\n{detection.score[child]:.2f} {counts}" in text
    assert re.search(r"Quantiles\nmedian [\d.]+, 90 %: [\d.]+, 99 %: [\d.]+\n", text)
    for heading in (
        "Strongest tokens",
        "Strongest contexts",
        "Where it and its parent disagree",
        "Activations",
        "Nearest",
    ):
        assert heading in text
    peaks = opened.run(
        """return Array.from(document.querySelector("section ol.contexts").querySelectorAll(".peak"),
        (peak) => Number(peak.textContent))"""
    )
    assert peaks == pytest.approx(hostile_dashboards.peaks[child, :6].tolist(), rel=0.01)
    shaded = "return document.querySelectorAll('.token.own').length * document.querySelectorAll('.token.above').length"
    assert opened.run(shaded) > 0
    outlined = """const [whole, ...lists] = [...document.querySelectorAll("h3 + .contexts")].slice(-2);
        return [whole, ...lists].map((list) => [...list.querySelectorAll(".meant")].map((each) => each.className))"""
    parent_alone, child_alone = opened.run(outlined)
    assert parent_alone
    assert all("above" in each and "own" not in each for each in parent_alone)
    assert child_alone
    assert all("own" in each and "above" not in each for each in child_alone)
    opened.run("document.querySelector('.metrics .term').focus()")
    assert "Share of all tokens" in opened.text()


def test_a_feature_that_never_fired_says_so(opened):
    opened.go(f"#/f/2/{WIDTHS[2] - 1}")
    assert "fired on none of the 1,200 tokens" in opened.text()
    assert "Strongest contexts" not in opened.text()
    opened.go(f"#/f/2/{WIDTHS[2]}")
    assert "No such feature" in opened.text()


SHARES = """return Array.from(document.querySelectorAll("tbody tr"),
    (row) => [row.querySelector(".id")?.textContent ?? "none", row.lastChild.textContent])"""


def test_the_comparison_adds_up(opened, hostile_sae, hostile_dashboards):
    forest = hostile_sae.forest
    parents = [f for f in range(sum(WIDTHS[:2])) if len(forest.children(f)) > 1 and hostile_dashboards.n_firing[f]]
    parent = min(parents, key=lambda f: expected_shares(hostile_dashboards, forest, f)["none"])
    opened.go(f"#/compare/{name_of(forest, parent)}")
    shares = opened.run(SHARES)
    assert {name for name, _ in shares} == {"none", *(name_of(forest, child) for child in forest.children(parent))}
    shown = {name: float(share.removesuffix(" %")) for name, share in shares}
    assert sum(shown.values()) == pytest.approx(100, abs=2)
    expected = expected_shares(hostile_dashboards, forest, parent)
    for name, share in expected.items():
        assert shown[name] == pytest.approx(100 * share, abs=1.5)
    opened.run("document.querySelector('button.only').click()")
    faded = opened.run("return document.querySelectorAll('.part.faded').length")
    assert 0 < faded < opened.run("return document.querySelectorAll('.part').length")


def test_a_child_has_its_own_shares_where_edges_are_left_out(browser, hostile_sae, hostile_dashboards, tmp_path):
    whole = hostile_sae.forest
    parents = [f for f in range(sum(WIDTHS[:2])) if len(whole.children(f)) > 1 and hostile_dashboards.n_firing[f]]
    first = [whole.children(parent)[0] for parent in parents]
    n_with_parent = hostile_dashboards.n_firing.clone()
    n_with_parent[first] = 0
    data = replace(hostile_dashboards, n_tokens=20 * hostile_dashboards.n_tokens, n_with_parent=n_with_parent)
    weak = data.n_firing == 0
    weak[first] = True
    forest = FeatureForest(whole.parents.where(~weak | data.is_copy, -1), whole.level_widths)
    opened = browser.anew(write_page(data, whole, tmp_path / "p.html", str))
    most = 0.0
    for parent in parents:
        opened.go(f"#/compare/{name_of(whole, parent)}?edges=not-weak")
        shown = {name: float(share.removesuffix(" %")) for name, share in opened.run(SHARES)}
        expected = {name: 100 * share for name, share in expected_shares(data, forest, parent).items()}
        assert shown == pytest.approx(expected, abs=1.5)
        most = max(most, 100 - expected["none"])
    assert most > 5


def expected_shares(dashboards, forest, parent) -> dict[str, float]:
    """Share of the parent's activation over its kept contexts, each once, that each child's projection covers."""
    slots = []
    numbers = dashboards.context_numbers[parent].tolist()
    for slot in range(9):
        if numbers[slot] >= 0 and numbers[slot] not in [numbers[i] for i in slots if i < 6]:
            slots.append(slot)
    own = dashboards.activations[parent][slots].double()
    children = forest.children(parent)
    covered = torch.stack([
        (dashboards.activations_on_parent[c][slots].double() * dashboards.parent_projection[c]).clamp(min=0) * (own > 0)
        for c in children
    ])  # fmt: skip
    total = covered.sum(0)
    covered = covered * torch.where(total > own, own / total.clamp(min=1e-9), 1.0)
    shares: dict[str, float] = {
        name_of(forest, c): (covered[i].sum() / own.sum()).item() for i, c in enumerate(children)
    }
    return shares | {"none": 1 - sum(shares.values())}


def test_search_finds_tokens_labels_and_contexts(opened):
    opened.keys("/")
    assert opened.run("return document.activeElement.id") == "query"
    opened.keys("MARKUP", "\ue007")
    opened.wait("#/search/MARKUP")
    assert "0/2" in opened.text()
    assert "Contexts" in opened.text()
    opened.go("#/search/%D7%A9%D7%9C%D7%95%D7%9D")
    assert opened.run("return document.querySelectorAll('.found > li').length") > 0
    found = opened.run("return document.querySelector('.found .context').textContent")
    assert "שלום" in found
    opened.go("#/search/nowhere%20to%20be%20found")
    assert "None." in opened.text()
    assert "0 found." in opened.text()


@pytest.fixture
def page_of_pieces(browser, tmp_path):
    """Characters that are split over tokens, a token of nothing but space, and a token that parts texts."""
    texts = ["see", " ", "<0xE6>", "<0x97>", "<0xA5>本<0xF0>", "<0x9F><0xA4><0x94>!", "[SEP]", "\n"]
    contexts = [[0, 1, 2, 3, 4, 5, 0, 0], [0, 1, 6, 0, 6, 0, 6, 0], [0, 6, 0, 6, 7, 6, 0, 6]] * 5
    data = planted_dashboards({0: (0,), 1: (7,)}, contexts=contexts)
    page = write_page(
        data, data.forest, tmp_path / "p.html", texts.__getitem__, {0: "a verb", 1: "line"}, separators=["[SEP]"]
    )
    return browser.anew(page)


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("see%20日本🤔!see", "🤔"),
        ("🤔", "🤔"),
        ("%3C0xE6%3E", "<0xE6>"),  # the chip of a token that is a byte
        ("%0A", "↵"),  # where a text ends no line does
        ("%20", "see "),
    ],
)
def test_contexts_are_found_by_what_one_reads(page_of_pieces, query, shown):
    page_of_pieces.run("location.hash = arguments[0]", f"#/search/{query}")
    page_of_pieces.wait(page_of_pieces.fragment())
    found = page_of_pieces.texts(".found .context")
    assert found
    assert all(shown in each for each in found)
    assert page_of_pieces.errors() == []


def test_the_chip_of_a_token_of_space_finds_it(page_of_pieces):
    page_of_pieces.go("#/f/0/1")
    page_of_pieces.run("document.querySelector('a.chip').click()")
    page_of_pieces.wait("#/search/%0A")
    assert page_of_pieces.texts("section:nth-of-type(1) li .id") == ["0/1"]
    assert page_of_pieces.texts("main h2")[0].endswith("match (1)")
    page_of_pieces.go("#/search/")
    assert "Type a token" in page_of_pieces.text()


def test_the_list_is_filtered_by_tokens_too(page_of_pieces):
    page_of_pieces.choose("filter-text", "SEE")
    assert page_of_pieces.rows()[-1] == "0/0"
    page_of_pieces.choose("filter-text", "verb")
    assert page_of_pieces.rows()[-1] == "0/0"


def test_search_shows_first_what_fires_on_the_words(browser, tmp_path):
    texts = ["the", " hot", " Water", " sea", ".", " a", " b", " c"]
    fires_on = dict.fromkeys(range(59), (0,)) | {59: {2: 1.0, 3: 2.0}, 60: (2,), 61: (1,)}
    data = planted_dashboards(fires_on, contexts=[[0, 1, 2, 4, 3, 5, 6, 7]] * 3, widths=[2, 60])
    browser.anew(write_page(data, data.forest, tmp_path / "p.html", texts.__getitem__))
    browser.go("#/search/water")
    assert browser.texts(".found > li > p > a .id") == ["1/58", "1/57", "0/0", "0/1", *(f"1/{i}" for i in range(36))]
    [status] = browser.texts("main [role=status]")
    assert status.startswith("62 features have a context with it; 2 of them fire on it, outlined. Shown: 40 of 62,")
    assert set(browser.texts(".meant")) == {" Water"}
    browser.go("#/search/hot%20water")
    assert browser.texts(".found > li > p > a .id")[:3] == ["1/58", "1/59", "1/57"]
    assert set(browser.texts(".meant")) == {" hot", " Water"}
    assert browser.errors() == []


def test_hits_are_outlined_in_each_features_own_window(opened):
    """Of a context longer than a window features keep different parts."""
    opened.go("#/search/plain")
    assert set(opened.texts(".found .meant")) == {" plain"}
    assert opened.run(
        "return [...document.querySelectorAll('.found > li')].every((row) => row.querySelector('.meant'))"
    )


def test_every_word_of_a_name_is_searched_for(browser, tmp_path):
    names = {0: "sea · water", 1: "water · sea", 2: "water", 4: "like 0/2", 5: "seaside of waters"}
    data = planted_dashboards({0: (0,), 2: (1,)})
    browser.anew(write_page(data, data.forest, tmp_path / "p.html", " abcdefgh".__getitem__, names))
    found = "section:first-of-type .plain > li > a .id"
    for query, shown in (
        ("water sea", ["0/0", "0/1", "1/1"]),
        ("water · sea", ["0/1", "0/0", "1/1"]),
        ("0/2", ["0/2", "1/0"]),
        ("like water", []),
    ):
        browser.run("location.hash = '#/search/' + encodeURIComponent(arguments[0])", query)
        browser.wait(browser.fragment())
        assert browser.texts(found) == shown, query
        browser.choose("filter-text", query)
        rows = [row for row in browser.rows() if "/" in row]
        assert set(rows) == ({"0/2"} if query == "0/2" else set(shown)), query
        browser.choose("filter-text", "")


def test_search_shows_first_what_is_called_so(browser, tmp_path):
    names = {0: "some · many", 1: "woman", 2: "men · man", 3: "man · men", 4: "man", 5: "man", 6: "old man", 7: "house"}
    tokens = [" horse", " man", " manor", *(f" {letter}" for letter in "abcde")]
    data = planted_dashboards({5: (0,), 7: (2,), 8: (1, 3)})
    browser.anew(write_page(data, data.forest, tmp_path / "p.html", tokens.__getitem__, names | {8: "house"}))
    browser.go("#/search/man")
    shown = browser.texts("section:first-of-type .plain > li")
    order = [5, 4, 3, 2, 6, 8, 1, 0, 7]
    assert [each.split(" ")[0] for each in shown] == [name_of(data.forest, f) for f in order], "5 fires, 4 does not"
    found_on = [each.partition(" of tokens")[2] for each in shown]
    assert [" · on " in each for each in found_on] == [f in (7, 8) for f in order]
    assert found_on[-1].startswith(" · on manor")
    assert browser.run("return document.getElementById('query').value") == "man"
    browser.run("document.getElementById('query').value = ' 1/2 '; document.getElementById('search').requestSubmit()")
    browser.wait("#/f/1/2")
    assert browser.run("return document.getElementById('query').value") == ""
    assert browser.errors() == []


def test_siblings_and_the_parent_are_a_key_away(opened, hostile_sae, hostile_dashboards):
    forest = hostile_sae.forest
    parent = next(f for f in range(WIDTHS[0]) if len(forest.children(f)) > 2)
    family = sorted(forest.children(parent), key=lambda f: (-hostile_dashboards.child_given_parent[f].item(), f))
    names = [name_of(forest, feature) for feature in family]
    opened.go(f"#/f/{names[0]}")
    for key, name in (("j", names[1]), ("j", names[2]), ("k", names[1])):
        opened.keys(key)
        opened.wait(f"#/f/{name}")
    assert opened.texts(".beside a .id") == [names[0], names[2]]
    opened.keys("u")
    opened.wait(f"#/f/{name_of(forest, parent)}")
    opened.keys("c")
    opened.wait(f"#/compare/{name_of(forest, parent)}")
    opened.keys("c", "u")
    opened.wait(f"#/f/{name_of(forest, parent)}")
    opened.run("document.getElementById('query').focus()")
    opened.keys("jukc")
    assert opened.fragment() == f"#/f/{name_of(forest, parent)}"
    assert opened.run("return document.getElementById('query').value") == "jukc"


@pytest.fixture
def page_of_parts(browser, tmp_path):
    """Of a root that fires on 146 of 352 tokens, a copy that fires on 44 of them, a child on 14, and eight more."""
    contexts = [[0, 1, 2, 3, 4, 5, 6, 6]] * 30 + [[0, 1, 2, 3, 4, 5, 6, 7]] * 14
    fires_on = {0: (0, 1, 2, 7), 2: (0,), 3: (7,)} | dict.fromkeys(range(4, 12), (1,))
    data = planted_dashboards(fires_on, dict.fromkeys(range(2, 12), 0), contexts, widths=[2, 12])
    data = replace(data, parent_cosine=torch.zeros(14).index_fill(0, torch.tensor([2]), 0.801))
    return browser.anew(write_page(data, data.forest, tmp_path / "p.html", " abcdefgh".__getitem__))


def test_marks_and_percentages_say_how_little_they_rest_on(page_of_parts):
    page = page_of_parts
    page.go("#/f/1/0")
    assert page.texts("h1 .badge") == ["copy 30 %"]
    assert page.texts(".relative:first-child p")[1].startswith("The edge:copy 30 %")
    assert page.texts(".relative:first-child p:first-of-type .badge") == [], "the edge is not the parent"
    page.go("#/f/1/1")
    assert page.texts("h1 .badge") == ["few", "weak"]
    lead = "Fires on 14 of 352 tokens (4.0 %). On 14 of them (100 %) its parent fires too; these are 9.6 %"
    assert page.texts(".lead")[0].startswith(lead)
    page.go("#/f/0/0")
    page.run("document.querySelector('.family .more').click()")
    said = "on 9.6 % of this feature's tokens; 100 % of its own lie within them · similarity 0.17"
    assert said in page.texts(".children p.muted")
    page.go("#/")
    assert page.texts(".tree > p") == ["0/0 · 10 concepts (11 features with copies) · see all 11 on the map"]
    assert page.run("return document.querySelector('.tree > p a').hash") == "#/map/0/0"


SEEN = """const room = document.getElementById("main").getBoundingClientRect();
    const box = document.activeElement.nextSibling.getBoundingClientRect();
    return box.left >= room.left && box.right <= room.right && box.top >= room.top && box.bottom <= room.bottom"""


def test_badges_explain_themselves_to_the_keyboard_within_the_page(page_of_parts):
    for width in (1280, 390):
        page_of_parts.size(width, 900)
        page_of_parts.go(f"#/f/0/0?colour={width}")
        for i in range(page_of_parts.run("return document.querySelectorAll('.children .badge').length")):
            page_of_parts.run("document.querySelectorAll('.children .badge')[arguments[0]].focus()", i)
            assert page_of_parts.run("return document.activeElement.nextSibling.checkVisibility()")
            assert page_of_parts.overflow("#main") <= 0
            assert page_of_parts.run(SEEN), (width, i)
        assert "cosine 0.80 with its parent's" in page_of_parts.texts(".children .explanation")[0]


def test_the_focus_goes_to_the_first_of_what_is_shown_in_addition(page_of_parts):
    page_of_parts.go("#/f/0/0")
    page_of_parts.run("document.querySelector('.family .more').click()")
    focused = "return [...document.querySelectorAll('.children > li')].indexOf(document.activeElement.closest('li'))"
    assert page_of_parts.run(focused) == 8
    assert page_of_parts.errors() == []
