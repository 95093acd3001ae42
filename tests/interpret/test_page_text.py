"""The explorer page's view of a text, token by token."""

from dataclasses import replace

import pytest
from hostile_page import HOSTILE, name_of

from sae_lens_hsae.interpret.page import write_page

pytestmark = pytest.mark.browser


def test_a_text_shows_its_paths_and_what_each_level_explains(opened, hostile_sae, hostile_text):
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
        firing, paths = hostile_text.entries[position], hostile_text.paths(position)
        if not firing:
            said = "Left out: far from all other tokens" if position == 0 else "No feature fires on this token."
            assert said in opened.text()
            continue
        if len(paths) > 8:
            opened.run("document.querySelector('button.more').click()")
            focused = opened.run("return document.activeElement.querySelector('.id').textContent")
            assert focused == name_of(hostile_sae.forest, paths[8][-1])
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
        names = [[name_of(hostile_sae.forest, feature) for feature in path] for path in paths]
        assert set(shown) == {tuple(path[: i + 1]) for path in names for i in range(len(path))}
        assert next(path for path, _ in rows if path in names) == names[0]
        for path, text in shown.items():
            feature = hostile_sae.forest.index(path[-1])
            assert text.endswith(" silent") == (feature not in firing)
            if feature in firing:
                share = hostile_text.shares[firing[feature]].item()
                assert f"share {round(100 * share)} %".replace("-", "−") in text
                alone = hostile_text.without_parent[firing[feature]].item()
                assert text.endswith("without its parent") == alone
                n_alone += alone
        cells = opened.run(
            "return Array.from(document.querySelectorAll('tbody tr'), (row) => row.children[1].textContent)"
        )
        assert cells == [f"{100 * s:.0f} %".replace("-", "−") for s in hostile_text.level_shares[position].tolist()]
    assert n_alone > 0
    # With edges left out, whatever fires is still shown, on a shorter path.
    for position, firing in enumerate(hostile_text.entries):
        opened.go(f"#/text/0/{position}?edges=clear")
        opened.run("document.querySelector('button.more')?.click()")
        shown = opened.run("return Array.from(document.querySelectorAll('.paths li > a .id'), (id) => id.textContent)")
        assert {name_of(hostile_sae.forest, feature) for feature in firing} <= set(shown)
    assert opened.errors() == []


def test_a_position_that_was_not_trained_on_says_so(browser, hostile_dashboards, hostile_text, tmp_path):
    shares = hostile_text.level_shares.clone()
    shares[-1] = float("nan")
    texts = [replace(hostile_text, level_shares=shares)]
    page = write_page(hostile_dashboards, hostile_text.forest, tmp_path / "p.html", str, explanations=texts)
    opened = browser.anew(page)
    opened.go(f"#/text/0/{len(HOSTILE) - 1}")
    assert "Left out: a position that was not trained on." in opened.text()
