"""All views of the explorer page, opened from disk with hostile text: no error, no request, no script."""

import re

import pytest
import torch
from hostile_page import HOSTILE, LABELS, LONG, name_of, stream
from planted import planted_dashboards
from small_saes import WIDTHS

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.page import write_page

pytestmark = pytest.mark.browser


def views(forest: FeatureForest) -> list[str]:
    names = [name_of(forest, feature) for feature in range(forest.n_features)]
    return [
        "#/",
        *(f"#/f/{name}" for name in names),
        *(f"#/compare/{name}" for name in names),
        "#/search/plain",
        "#/search/%3C%2Fscript%3E",
        "#/search/",
        "#/map",
        "#/part/1/4",
        "#feature=1/3",
        *(f"#/text/0/{position}" for position in range(len(HOSTILE))),
        "#/text/0",
        "#/text/0/99",
        "#/text/1",
        "#/f/9/9",
        "#/nonsense",
    ]


def test_every_view_opens_from_disk_without_error_request_or_script(opened, hostile_page, hostile_sae):
    for view in views(hostile_sae.forest):
        opened.go(view)
        assert "cannot be shown" not in opened.text()
    assert opened.errors() == []
    assert opened.run("return window.ran") is None
    assert opened.requests() <= {hostile_page.as_uri(), hostile_page.as_uri() + "#/"}


def test_hostile_text_is_shown_as_text(opened, hostile_sae):
    opened.go("#/f/0/2")
    text = opened.text()
    assert LABELS[2] in text
    assert opened.run("return document.querySelectorAll('main b, main img, main script').length") == 0
    seen = ""
    for feature in range(hostile_sae.forest.n_features):
        opened.go(f"#/f/{name_of(hostile_sae.forest, feature)}")
        seen += opened.run("return document.getElementById('main').textContent")
    for token in (HOSTILE[1], HOSTILE[2], HOSTILE[6], HOSTILE[8], HOSTILE[10]):
        assert token in seen
    assert "⟨U+202E⟩right⟨U+202C⟩ to left" in seen
    assert " ␀␇␛[31m" in seen
    assert "⟨U+D800⟩ lone" in seen
    assert "↵" in seen
    assert not re.search("[\u202a-\u202e\x00-\x08]", seen)
    assert "… (10,000 characters)" in seen
    assert opened.run("return window.ran") is None


def test_what_the_page_is_of_stands_at_its_foot_as_text(browser, hostile_sae, hostile_dashboards, tmp_path):
    about = {f"<b>{i}": text for i, text in enumerate(HOSTILE)}
    page = write_page(hostile_dashboards, hostile_sae.forest, tmp_path / "p.html", HOSTILE.__getitem__, about=about)
    opened = browser.anew(page)
    assert opened.texts("#about dt") == list(about)
    assert opened.texts("#about dd")[:3] == HOSTILE[:3]
    assert opened.texts("#about dd")[3:5] == [" \ufffdright\ufffd to left", " \ufffd\ufffd\ufffd[31m"]
    opened.run("document.querySelector('#about summary').click()")
    assert opened.overflow("html") <= 0
    assert opened.run("return document.getElementById('main').clientHeight") > 300
    assert opened.run("return window.ran") is None
    assert opened.errors() == []


def test_a_long_token_opens_and_breaks_no_layout(opened, hostile_sae):
    for feature in range(hostile_sae.forest.n_features):
        opened.go(f"#/f/{name_of(hostile_sae.forest, feature)}")
        if opened.run("return document.querySelector('.token.long') !== null"):
            break
    opened.run("document.querySelector('.token.long').click()")
    assert len(opened.run("return document.querySelector('.token.long').textContent")) == len(LONG)
    assert opened.overflow("#main") <= 0
    opened.size(390, 844)
    assert opened.overflow("#main") <= 0


def test_the_policy_blocks_scripts_and_requests(opened):
    opened.run("""window.violations = 0;
        document.addEventListener("securitypolicyviolation", () => { window.violations += 1; });
        const script = document.createElement("script");
        script.textContent = "window.ran = 5";
        document.body.append(script);
        const image = document.createElement("img");
        image.src = "https://example.invalid/x.png";
        document.body.append(image);
        document.body.insertAdjacentHTML("beforeend", "<p onclick='window.ran = 6' id='trap'></p>");
        document.getElementById("trap").click();""")
    opened.until(lambda: opened.run("return window.violations") >= 3, "the violations")
    assert opened.run("return window.ran") is None
    assert not any("example.invalid" in url for url in opened.requests())
    opened.errors()


def test_a_page_saved_from_the_browser_opens(opened, tmp_path):
    opened.go("#/f/0/2")
    options, rows = opened.texts("#filters option"), opened.rows()
    html = opened.run("return document.documentElement.outerHTML")
    saved = tmp_path / "saved.html"
    saved.write_text("<!doctype html>" + re.sub(r' data-(ready|view|finished)="[^"]*"', "", html))
    opened.open(saved, "#/f/0/2")
    assert opened.texts("#filters option") == options
    assert opened.rows() == rows
    opened.choose("sort", "detection")
    assert opened.texts("#column") == ["detection by tokens"]
    opened.errors()  # styles of the old elements, which the policy blocks


@pytest.fixture
def page_of_scripts(browser, tmp_path):
    """Right-to-left text, joined words and joined emoji."""
    texts = [
        " שלום",
        "עולם",
        "\u202eabc",
        "می",
        "\u200c",
        "خواهم",
        " 👩\u200d👩\ufe0f\u200d👧",
        " a\u200cb\u200d\u200d",
    ]
    contexts = [list(range(8)), [0, 6, 7, 7, 1, 0, 1, 1]] * 4
    data = planted_dashboards({0: (0,), 4: (0,), 5: (1,)}, {4: 0, 5: 0}, contexts)
    labels = {0: "שלום · C++ · b · מים"}
    return browser.anew(write_page(data, data.forest, tmp_path / "p.html", texts.__getitem__, labels))


def test_text_from_right_to_left_is_read_from_right_to_left(page_of_scripts):
    page = page_of_scripts
    for view, kind in (("#/f/0/0", ".context"), ("#/f/0/0", ".snippet"), ("#/compare/0/0", ".context")):
        page.go(view)
        places = page.run(
            """const line = document.querySelector(arguments[0]), tokens = [...line.querySelectorAll(".token")];
            return [getComputedStyle(line).direction, tokens.slice(0, 2).map((each) => each.getBoundingClientRect().x),
              tokens.map((each) => getComputedStyle(each).unicodeBidi === "isolate")]""",
            kind,
        )
        assert places[0] == "rtl", kind
        if kind == ".snippet":
            mask = "return getComputedStyle(document.querySelector('.before')).maskImage"
            assert "to left" in page.run(mask), "it fades where it is cut"
        assert places[1][0] > places[1][1], kind
        assert places[2][:5] == [False, False, True, False, False], "only a mark keeps its token apart"
    mixed = """return [...document.querySelectorAll(arguments[0])].map((line) => [...line.querySelectorAll(".token")])
        .find((tokens) => tokens[2].textContent.startsWith(" a")).map((each) => each.getBoundingClientRect().x)"""
    for view, kind in (("#/f/0/0", ".context"), ("#/compare/0/0", ".context")):
        page.go(view)
        x = page.run(mixed, kind)
        assert x[0] > x[3] > x[2] > x[4] > x[5], "words within a line keep their own direction"
    x = page.run("""const text = document.querySelector("h1 bdi").firstChild, range = document.createRange();
        return ["שלום", "C++", "b", "מים"].map((part) => {
          const at = text.data.indexOf(part);
          range.setStart(text, at);
          range.setEnd(text, at + part.length);
          return range.getBoundingClientRect().x;
        })""")
    assert x == sorted(x, reverse=True), "the parts of a name keep their order"


def test_joined_characters_stay_joined(page_of_scripts):
    page_of_scripts.go("#/f/0/0")
    seen = page_of_scripts.texts(".context")[0]
    assert "می\u200cخواهم" in seen
    assert "👩\u200d👩\ufe0f\u200d👧" in seen
    assert "a⟨U+200C⟩b⟨U+200D⟩⟨U+200D⟩" in seen
    assert "⟨U+202E⟩abc" in seen
    assert page_of_scripts.errors() == []


def test_a_forest_without_edges_works(browser, hostile_sae, tmp_path):
    forest = FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS)
    bare = collect_dashboards(hostile_sae, forest, stream(5), settings=DashboardSettings(window=4), progress=False)
    page = write_page(bare, forest, tmp_path / "p.html", HOSTILE.__getitem__)
    browser.errors()
    browser.open(page)
    assert "read on 100 tokens. No feature has a parent." in browser.text()
    for view in ("#/map", "#/f/0/0", "#/compare/0/0", "#/f/1/0"):
        browser.go(view)
    assert "unassigned" in browser.text()
    assert browser.errors() == []
