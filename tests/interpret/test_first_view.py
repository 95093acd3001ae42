"""What the explorer page opens on, and how copies, sections and families are shown: slow references and Chromium."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from page_blocks import array_of, blocks_of
from planted import planted_dashboards
from small_saes import D_IN, make_sae

from sae_lens_hsae import FeatureForest, evaluate_forest
from sae_lens_hsae.forest.concepts import Concepts
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.labels import label_detection
from sae_lens_hsae.interpret.page import PageSection, write_page
from sae_lens_hsae.interpret.page.first_view import first_view

WIDTHS = [3, 5, 8]
PARENTS = [-1, -1, -1, 0, 0, 1, -1, -1, 5, 5, 3, 3, 4, 7, -1, 4]
COPIES = {5, 10}
"""Of 1 and of 3. So 1 has the children 8 and 9 as a concept, 3 the child 11; 15 never fires."""
TEXTS = [" alpha", " beta", "!", " gamma", " of", " delta", "9", " epsilon", " zeta", ";", " eta", " theta"]
LABELS = {0: "alpha · of", 3: "alpha", 13: "alpha · beta", 20: "alpha", 30: "alpha", 60: "alpha"}
SECTION = PageSection("Circuit <b>", [("token </script> at 3", ["1/2", 9]), ("no feature", [])])


@pytest.fixture(scope="module")
def sae():
    sae = make_sae(level_widths=WIDTHS, seed=5)
    generator = torch.Generator().manual_seed(0)
    for child, parent in enumerate(PARENTS):
        if parent >= 0:
            # Directions as of a family; copies nearly the same.
            noise = torch.randn(D_IN, generator=generator)
            near = 0.05 if child in COPIES else 1.5
            direction = sae.W_dec.data[parent] + near * noise / noise.norm()
            sae.W_dec.data[child] = direction / direction.norm()
            sae.W_enc.data[:, child] = sae.W_enc.data[:, parent] * 0.8 + 0.2 * sae.W_enc.data[:, child]
    sae.threshold.data[-1] = 1e9
    return sae


@pytest.fixture(scope="module")
def forest():
    return FeatureForest(PARENTS, WIDTHS)


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(len(TEXTS), (40, 16), generator=generator)
    words = torch.randn(len(TEXTS), D_IN, generator=generator)
    return [(ids, words[ids] + 0.5 * torch.randn(40, 16, D_IN, generator=generator))]


@pytest.fixture(scope="module")
def dashboards(sae, forest, batches):
    settings = DashboardSettings(window=10, n_top=4, n_sampled=2)
    return collect_dashboards(sae, forest, batches, settings=settings, progress=False)


@pytest.fixture(scope="module")
def page(dashboards, forest, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    return write_page(dashboards, forest, path, TEXTS.__getitem__, start=["1/1"], sections=[SECTION])


def ranked_slowly(
    dashboards: Any, forest: FeatureForest, copies: set[int], found_again: Any = None
) -> tuple[list[int], list[int]]:
    """Families and features that stand alone, by loops over features."""
    n_firing, parents = dashboards.n_firing.tolist(), forest.parents.tolist()
    detection = label_detection(dashboards, TEXTS.__getitem__).score.tolist()

    def narrowing(child: int) -> float:
        both, parent = dashboards.n_with_parent[child].item(), parents[child]
        if not n_firing[parent]:
            return math.nan
        return (both / n_firing[child] - n_firing[parent] / dashboards.n_tokens) * (1 - both / n_firing[parent])

    def word_share(feature: int) -> float:
        tokens = [TEXTS[token].strip() for token in dashboards.strongest_tokens[feature].tolist() if token >= 0]
        return sum(len(token) >= 3 and token.isalpha() for token in tokens) / max(len(tokens), 1)

    score, alone = {}, {}
    for top in (f for f, parent in enumerate(parents) if parent < 0 and n_firing[f]):
        concepts = [f for f in forest.subtree(top) if f not in copies and n_firing[f] > 0]
        above = []
        for concept in concepts:
            parent = parents[concept]
            while parent in copies:
                parent = parents[parent]
            above += [parent] if parent >= 0 else []
        if len(concepts) == 1 and not math.isnan(detection[top]):
            alone[top] = detection[top] * word_share(top)
        elif len(concepts) >= 3 and any(above.count(each) >= 2 for each in above):
            children = [child for child in concepts if parents[child] >= 0 and not math.isnan(narrowing(child))]
            edges = [narrowing(child) for child in children]
            again = [1.0 if found_again is None else float(found_again[child]) for child in children]
            words = [word_share(concept) for concept in concepts]
            tokens = [dashboards.strongest_tokens[concept, 0].item() for concept in concepts]
            labels = [LABELS.get(concept) or TEXTS[token] for concept, token in zip(concepts, tokens, strict=True)]
            names = len({label.split(" · ")[0].strip() for label in labels})
            holds = [0.5 if math.isnan(detection[concept]) else detection[concept] for concept in concepts]
            factors = sum(edges) / max(len(edges), 1), sum(words) / len(words), sum(holds) / len(holds), math.log(names)
            share = max(sum(again) / max(len(again), 1), 1e-9)
            score[top] = math.prod(factors) * (share if math.prod(factors) >= 0 else 1 / share)
    return sorted(score, key=lambda f: (-score[f], f)), sorted(alone, key=lambda f: (-alone[f], f))


def test_trees_are_ranked_as_a_slow_loop_ranks_them(batches):
    widths = [12, 40, 120]
    sae = make_sae(level_widths=widths, seed=2)
    generator = torch.Generator().manual_seed(3)
    parents = [-1] * 12
    for start, width, above in ((0, 12, 40), (12, 40, 120)):
        has = torch.rand(above, generator=generator) < 0.5
        parents += torch.where(has, start + torch.randint(width, (above,), generator=generator), -1).tolist()
    forest = FeatureForest(parents, widths)
    sae.threshold.data[::7] = 1e9
    assigned = (forest.parents >= 0).nonzero().flatten()
    copies = set(assigned[torch.rand(len(assigned), generator=generator) < 0.2].tolist())
    settings = DashboardSettings(window=10, n_top=4, n_sampled=2)
    data = collect_dashboards(sae, forest, batches, settings=settings, progress=False)
    is_copy = torch.zeros(len(forest), dtype=torch.bool)
    is_copy[list(copies)] = True
    detection = label_detection(data, TEXTS.__getitem__).score
    found = first_view(data, forest, Concepts(forest, is_copy), detection, TEXTS.__getitem__, LABELS)
    families, alone = ranked_slowly(data, forest, copies)
    assert len(families) > 5
    assert found.families.tolist() == families
    assert found.alone.tolist() == alone
    again = torch.randint(4, (len(forest),), generator=generator) / 3
    found = first_view(data, forest, Concepts(forest, is_copy), detection, TEXTS.__getitem__, LABELS, again)
    assert found.families.tolist() == ranked_slowly(data, forest, copies, again)[0] != families
    none = torch.zeros(len(forest))
    found = first_view(data, forest, Concepts(forest, is_copy), detection, TEXTS.__getitem__, LABELS, none)
    assert found.families.tolist() == families, "without an edge found again the order is what it was"


def test_the_page_holds_the_ranks_and_the_copies(dashboards, forest, page):
    families, alone = ranked_slowly(dashboards, forest, COPIES)
    assert set(families) == {0, 1}, "7 does not branch"
    arrays = blocks_of(page)["forest"]
    assert array_of(arrays, "families").tolist() == families
    assert array_of(arrays, "alone").tolist() == alone
    assert set(array_of(arrays, "isCopy").nonzero().flatten().tolist()) == COPIES


def test_a_start_or_section_of_no_feature_is_refused(dashboards, forest, tmp_path):
    wrong: dict[str, Any]
    for wrong in ({"start": [99]}, {"sections": [PageSection("x", [("y", ["0/3"])])]}):
        with pytest.raises(IndexError, match=r"feature 99 does not exist|feature 3 is not in level 0"):
            write_page(dashboards, forest, tmp_path / "p.html", TEXTS.__getitem__, **wrong)
    assert not list(tmp_path.iterdir())


def test_edges_found_again_are_counted_over_the_other_trainings(dashboards, forest, tmp_path):
    one, two = torch.zeros(2, len(forest), dtype=torch.bool)
    one[[8, 9]], two[9] = True, True
    page = write_page(
        dashboards, forest, tmp_path / "p.html", TEXTS.__getitem__, found_again={"seed 1": one, "seed 2": two}
    )
    arrays = blocks_of(page)["forest"]
    assert array_of(arrays, "foundAgain").tolist() == [0] * 8 + [1, 2] + [0] * 6
    assert arrays[0]["plain"]["otherTrainings"] == ["seed 1", "seed 2"]
    for wrong in (one[:-1], one.float()):
        with pytest.raises(ValueError, match=r"found_again: 'x' has .*, expected \(16,\) bool, from shared_edges"):
            write_page(dashboards, forest, tmp_path / "q.html", TEXTS.__getitem__, found_again={"x": wrong})


# In the browser.


@pytest.fixture
def opened(browser, page):
    return browser.anew(page)


TREES = """return Array.from(document.querySelectorAll(".card.tree"), (card) =>
    Array.from(card.querySelectorAll(".leaf a"), (a) => a.hash))"""


@pytest.mark.browser
def test_the_first_view_opens_on_the_start_and_then_the_families(opened, dashboards):
    trees = opened.run(TREES)
    assert [tree[0] for tree in trees] == ["#/f/0/0", "#/f/0/1"]
    assert sorted(trees[1]) == ["#/f/0/1", "#/f/2/0", "#/f/2/1"], "the copy 1/2 is left out"
    text = opened.text()
    assert text.index("Start here") < text.index("Circuit <b>") < text.index("Trees that branch")
    # Every feature of a card with the token it is strongest on, shaded.
    for hash_, peak in opened.run("""return Array.from(document.querySelectorAll(".leaf"), (leaf) =>
            [leaf.querySelector("a").hash, leaf.querySelector(".after .token")?.textContent])"""):
        level, number = map(int, hash_[4:].split("/"))
        feature = sum(WIDTHS[:level]) + number
        token = dashboards.token_ids[feature, 0, dashboards.peak_positions[feature, 0]].item()
        assert peak == TEXTS[token].lstrip()
    assert opened.errors() == []


@pytest.mark.browser
def test_contexts_show_where_texts_part_and_snippets_end_there(browser, sae, forest, batches, tmp_path):
    ids, acts = batches[0][0].clone(), batches[0][1]
    ids[ids == TEXTS.index(";")] = 0
    ids[:, 5:7] = TEXTS.index(";")
    settings = DashboardSettings(window=10, n_top=4, n_sampled=2)
    silent = collect_dashboards(
        sae, forest, [(ids, acts)], settings=settings, exclude_tokens=[TEXTS.index(";")], progress=False
    )
    loud = collect_dashboards(sae, forest, [(ids, acts)], settings=settings, progress=False)
    pages = {}
    for name, dashboards in (("silent", silent), ("loud", loud)):
        pages[name] = tmp_path / f"{name}.html"
        write_page(dashboards, forest, pages[name], TEXTS.__getitem__, separators=[";"])
    browser.open(pages["silent"], "#/f/0/0")
    for view in ("#/f/0/0", "#/compare/0/0", "#/search/alpha"):
        browser.go(view)
        lines = browser.run("""return [...document.querySelectorAll(".context")].map((each) =>
            [each.textContent, each.querySelectorAll(".parting").length])""")
        assert all(";" not in text for text, _ in lines)
        assert {1} <= {n for _, n in lines} <= {0, 1}, "two separators side by side are one mark"
    browser.go("#/f/0/0")
    expected = []
    for slot in range(4):
        row = silent.token_ids[0, slot].tolist()
        peak = int(silent.peak_positions[0, slot])
        first = max((i + 1 for i in range(peak) if TEXTS[row[i]] == ";"), default=0)
        last = next((i for i in range(peak, 10) if TEXTS[row[i]] == ";"), 10)
        expected.append("".join(TEXTS[id_].strip() for id_ in row[first:last]))
    shown = browser.run("""return [...document.querySelectorAll(".family .relative:nth-child(2) .snippet")]
        .map((each) => each.textContent.replaceAll(" ", ""))""")
    assert len(shown) == 4
    assert all(text in whole for text, whole in zip(shown, expected, strict=True)), "a snippet is 40 letters either way"
    assert set(shown) & set(expected)
    assert browser.errors() == []

    browser.open(pages["loud"], "#/f/0/0")
    fires = next(i for i in range(3) if (loud.activations[i].float()[loud.token_ids[i] == TEXTS.index(";")] > 0).any())
    browser.go(f"#/f/0/{fires}")
    shown = "return [...document.querySelectorAll('.context .token.own')].map((each) => each.textContent)"
    assert ";" in browser.run(shown), "a separator on which the feature fires is shown"


@pytest.mark.browser
def test_the_words_of_a_family_are_no_pieces(opened, dashboards):
    opened.go("#/f/0/1")
    of_feature = opened.run("return document.querySelector('.family .relative:nth-child(2) .words').textContent")
    strongest = [TEXTS[id_] for id_ in dashboards.strongest_tokens[1].tolist() if id_ >= 0]
    assert any(not text.startswith(" ") for text in strongest), "or it would test nothing"
    whole = [text.strip() for text in strongest if text.startswith(" ")]
    assert of_feature == " · ".join(whole[:6])


@pytest.mark.browser
def test_the_counts_are_those_of_the_evaluation(opened, sae, forest, batches):
    evaluation = evaluate_forest(sae, forest, [acts.flatten(0, 1) for _, acts in batches])
    rows = opened.run("""return Array.from(document.querySelectorAll("tbody tr"),
        (row) => Array.from(row.children, (cell) => cell.textContent))""")
    for level, row in zip(evaluation.levels, rows, strict=True):
        assert row[:4] == [str(level.level), str(level.width), f"{level.l0:.2f}", str(level.n_dead)]
    assert evaluation.levels[-1].n_dead > 0
    for boundary, row in zip(evaluation.boundaries, rows[1:], strict=True):
        assert f"({100 * boundary.unassigned_share:.1f} %)" in row[4]
    assert [row[5] for row in rows] == ["–", "1", "1"]


@pytest.mark.browser
def test_hidden_copies_leave_list_path_and_family(opened):
    children = ".family .relative:last-child li > p:first-child .id"
    opened.go("#/f/0/1")
    assert opened.texts(children) == ["1/2"]
    assert "Its child fires on" in opened.text()
    assert opened.run("return document.querySelector('.family .badge').textContent") == "copy"
    assert "1/2" not in opened.rows(), "closed"
    opened.run("document.getElementById('hide-copies').click()")
    opened.until(lambda: opened.fragment().endswith("copies=hidden"), "the link")
    opened.wait("#/f/0/1?copies=hidden")
    assert set(opened.texts(children)) == {"2/0", "2/1"}
    through = opened.texts(".children p.muted")
    assert len(through) == 2
    assert all(each.startswith("through the hidden copy 1/2 ") for each in through)
    assert "Its child (a hidden copy) fires on" in opened.text(), "else it would seem to be of the two"
    assert "Size of its tree\n3 features, copies left out" in opened.text()
    opened.driver.find_element("css selector", "a.action").click()
    opened.wait("#/compare/0/1?copies=hidden")
    assert "and its 1 child (a hidden copy)" in opened.text()
    assert opened.run("return document.getElementById('count').textContent") == "3 trees, 14 features"
    opened.go("#/f/2/0?copies=hidden")
    assert opened.run("return document.querySelector('.path').textContent").startswith("0/1")
    assert opened.texts(".family .relative:first-child a .id") == ["0/1", "1/2"]
    for said in ("its parent 1/2 (a hidden copy) fires too;", "Where it and its parent 1/2 (a hidden copy) disagree"):
        assert said in opened.text()
    assert "its parent 1/2 (a hidden copy)" in opened.texts(".legend .above")
    assert "1/2" not in opened.run("return document.querySelector('.path').textContent")
    assert {"0/1", "2/0", "2/1"} <= set(opened.rows())
    assert "1/2" not in opened.rows()
    opened.go("#/f/1/2?copies=hidden")
    selected = opened.run("return document.querySelector('[aria-selected=true] .id').textContent")
    assert selected == "0/1", "a copy is found under what it repeats"
    opened.run("document.getElementById('hide-copies').click()")
    opened.until(lambda: "copies" not in opened.fragment(), "the link")
    assert opened.errors() == []


@pytest.mark.browser
def test_parent_and_children_stand_beside_the_feature_at_the_top(opened):
    opened.go("#/f/1/0")
    boxes = """return Array.from(document.querySelectorAll(".family > *"),
        (box) => { const r = box.getBoundingClientRect(); return [r.left, r.top, r.bottom]; })"""
    (left, top, _), (middle, _, _), (right, _, bottom) = opened.run(boxes)
    assert left < middle < right
    assert (
        top < bottom < opened.run("return Array.from(document.querySelectorAll('h2'))[0].getBoundingClientRect().top")
    )
    shown = opened.run("return Array.from(document.querySelectorAll('.family a[href^=\"#/f\"]'), (a) => a.hash)")
    assert shown[0] == "#/f/0/0"
    assert set(shown[1:]) == {"#/f/2/2", "#/f/2/3"}
    assert opened.run("return document.querySelectorAll('.children .snippet').length") == 2
    opened.size(390, 844)
    (_, one, _), (_, two, _), (_, three, _) = opened.run(boxes)
    assert one < two < three


@pytest.mark.browser
def test_a_section_stands_on_the_first_view_and_with_its_features(opened):
    opened.go("#/f/2/1")
    text = opened.text()
    assert "Circuit <b>" in text
    assert "token </script> at 3" in text
    assert "no feature" not in text
    opened.go("#/f/2/0")
    assert "Circuit" not in opened.text()
    opened.go("#feature=1/2")
    assert opened.run("return document.querySelector('h1 .id').textContent") == "1/2"


@pytest.mark.browser
def test_search_says_where_a_feature_stands(opened):
    opened.go("#/search/2/1")
    place = "return document.querySelector('.plain .place').textContent"
    found = opened.run(place)
    assert found.startswith("in 0/1")
    assert "› 1/2" in found
    opened.go("#/search/0/0")
    assert "6 features below it" in opened.run(place)
    opened.go("#/search/0/2")
    assert opened.run(place) == "stands alone"


@pytest.mark.browser
def test_a_table_too_wide_for_a_phone_says_that_it_scrolls(opened):
    shown = "return document.querySelector('.cue').checkVisibility()"
    assert not opened.run(shown)
    opened.size(320, 700)
    opened.until(lambda: opened.run(shown), "the cue")
    opened.run("const s = document.querySelector('.scroll'); s.scrollLeft = s.scrollWidth")
    opened.until(lambda: not opened.run(shown), "the end")


@pytest.mark.browser
@pytest.mark.parametrize("n_others", [1, 2])
def test_edges_found_again_are_marked(browser, dashboards, forest, tmp_path, n_others):
    one, two = torch.zeros(2, len(forest), dtype=torch.bool)
    one[[5, 8, 9]], two[9] = True, True  # 5 is a copy
    dashboards = replace(dashboards, n_tokens=5 * dashboards.n_tokens)  # else all edges are weak
    others = dict(list({"<b>runs/1": one, "runs/2": two}.items())[:n_others])
    page = write_page(dashboards, forest, tmp_path / "p.html", TEXTS.__getitem__, found_again=others)
    opened = browser.anew(page)
    mark = "found again 1/2" if n_others == 2 else "found again"
    parents = forest.parents
    own = (parents >= 0) & ~torch.tensor([f in COPIES for f in range(len(forest))])
    clear = own & (dashboards.parent_given_child - 2 * dashboards.frequency[parents.clamp(min=0)] >= 0.5)
    kinds = {"copies": (parents >= 0) & ~own, "clear enough": clear, "weak": own & ~clear}
    shares = [
        ", ".join(
            f"{int(100 * each[kind].double().mean() + 0.5)} % of the {name}"
            for name, kind in kinds.items()
            if kind.any()
        )
        for each in (one, one & two)
    ]
    said = (
        f"in at least one of 2 other trainings (✓): {shares[0]}. In all of them: {shares[1]}."
        if n_others == 2
        else f"in <b>runs/1 (✓): {shares[0]}."
    )
    text = opened.run("return document.querySelector('.summary').innerText")
    assert text.startswith(
        "16 features in 3 levels, read on 3,200 tokens. 13 form 3 trees; 3 stand alone. Of their 10 edges 2 lead "
    )
    assert text.endswith(f"Found again {said}")
    marks = """return Object.fromEntries([...document.querySelectorAll("#main .leaf")].map((leaf) =>
        [leaf.querySelector("a").hash, leaf.querySelector(".again")?.textContent ?? ""]))"""
    shown = opened.run(marks)
    assert {hash_: shown[hash_] for hash_ in ("#/f/0/1", "#/f/2/0", "#/f/2/1")} == {
        "#/f/0/1": "",
        "#/f/2/0": mark,
        "#/f/2/1": mark.replace("1/2", "2/2"),
    }
    browser.go("#/f/2/0")
    assert opened.run("return document.querySelector('h1 .again').textContent") == mark
    assert (
        opened.run("return [...document.querySelectorAll('#rows .again')].map((each) => each.textContent[0])")[0] == "✓"
    )
    # Beside the parent stands what is said of the edge to it, and not of the parent's own.
    assert opened.run("return document.querySelector('.relative .again').textContent") == mark
    browser.go("#/f/1/1")
    assert opened.run("return document.querySelector('.relative .again')?.textContent ?? ''") == ""
    for child in (own & ~clear).nonzero().flatten().tolist():  # whose edge is then left out
        browser.go(f"#/f/{forest.levels.name(child)}?edges=not-weak")
        assert not opened.run("return document.querySelector('h1 .again')"), child
    assert opened.errors() == []


@pytest.mark.browser
def test_a_single_edge_is_spoken_of_in_the_singular(browser, tmp_path):
    data = planted_dashboards({0: (0,), 2: (0,)}, {2: 0}, widths=[2, 3])
    browser.anew(write_page(data, data.forest, tmp_path / "p.html", " abcdefgh".__getitem__))
    assert browser.run("return document.querySelector('.summary').innerText") == (
        "5 features in 2 levels, read on 320 tokens. 2 form 1 tree; 3 stand alone. Its 1 edge is clear enough."
    )


# Of each row of the map the features from left to right, with their colours.
SCAN = """const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect(), rows = [];
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const hint = document.querySelector(".hint");
    const colour = (x, y) => data.slice(4 * (y * canvas.width + x)).slice(0, 3).join(" ");
    for (let y = 3; y < box.height; y += box.height / 3) {
        const row = [];
        for (let x = 3; x < box.width; x += 6) {
            canvas.dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + x, clientY: box.top + y }));
            const [, id] = /^(\\d\\/\\d+) /.exec(hint.textContent) ?? [];
            if (id && id !== row.at(-1)?.[0]) row.push([id, colour(x, Math.round(y))]);
        }
        rows.push(row);
    }
    return rows"""


@pytest.mark.browser
def test_the_map_leaves_out_hidden_copies_and_is_coloured_by_the_edges(browser, dashboards, forest, tmp_path):
    again = torch.zeros(len(forest), dtype=torch.bool)
    again[[5, 8]] = True
    page = write_page(dashboards, forest, tmp_path / "p.html", TEXTS.__getitem__, found_again={"seed 1": again})
    browser.anew(page)
    trees = {f for f in range(len(forest)) if forest.parent(f) is not None or forest.children(f)}
    browser.go("#/map?copies=hidden&colour=again")
    rows = browser.run(SCAN)
    assert {forest.index(id_) for row in rows for id_, _ in row} == trees - COPIES
    grey, low, high = "201 201 201", "219 228 240", "11 74 143"
    for id_, colour in (each for row in rows for each in row):
        feature = forest.index(id_)
        assert colour == (grey if forest.parent(feature) is None else high if again[feature] else low), id_
    browser.go("#/map?colour=similarity")
    rows = [[forest.index(id_) for id_, _ in row] for row in browser.run(SCAN)]
    assert {f for row in rows for f in row} == trees
    narrowing = dashboards.narrowing.nan_to_num(0).tolist()
    for parent in {forest.parent(f) for f in trees} - {None}:
        siblings = [f for row in rows for f in row if forest.parent(f) == parent]
        assert siblings == sorted(siblings, key=lambda f: (-narrowing[f], f)), "as on the cards"
    assert browser.errors() == []


@pytest.mark.browser
def test_edges_of_low_similarity_are_marked_as_weak(browser, dashboards, forest, tmp_path):
    dashboards = replace(dashboards, n_tokens=5 * dashboards.n_tokens)  # else all parents fire too often
    opened = browser.anew(write_page(dashboards, forest, tmp_path / "p.html", TEXTS.__getitem__))
    similarity = dashboards.parent_given_child - 2 * dashboards.frequency[forest.parents.clamp(min=0)]
    weak = {}
    for child in forest.edges()[:, 1].tolist():
        if dashboards.n_firing[child]:
            browser.go(f"#/f/{forest.levels.name(child)}")
            shown = opened.run("return ['h1 .weak', '.relative .weak'].map((each) => !!document.querySelector(each))")
            weak[child] = shown[0]
            assert shown[0] <= shown[1], "beside the parent, too"
            assert f"{similarity[child]:.2f}" in opened.text(), "among its numbers"
    assert weak == {child: bool(similarity[child] < 0.5) and child not in COPIES for child in weak}
    assert set(weak.values()) == {True, False}
    assert opened.errors() == []
