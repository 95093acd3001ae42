"""How the explorer page looks: contrast, themes, phones."""

import pytest

pytestmark = pytest.mark.browser

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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_text_is_legible_and_nothing_overflows(opened, scheme, width):
    opened.size(width, 850)
    opened.scheme(scheme)
    for view in ("#/", "#/map", "#/f/0/2", "#/f/1/3", "#/compare/0/1", "#/search/plain", "#/text/0", "#/text/0/3"):
        opened.go(view)
        assert opened.run(CONTRAST) == [], view
        assert opened.overflow("html") <= 0, view
    opened.go("#/map")
    assert opened.overflow(".hint") <= 0, "a sentence is cut off"


def test_the_theme_button_switches(opened):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) != light
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) == light


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
    opened.run("document.getElementById('menu').click()")
    opened.run("document.querySelector('.row.selected').click()")
    assert not opened.run(shown), "what is chosen is shown already"
    opened.run("document.querySelector('#views a:last-child').click()")
    opened.wait("#/map")
    opened.run("document.getElementById('menu').click(); document.querySelector('#views a:last-child').click()")
    assert not opened.run(shown)


def test_paper_shows_the_shades_in_light_colours(opened):
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    opened.go("#/compare/0/1")
    light = opened.run(style, "body", "backgroundColor")
    opened.run("document.getElementById('theme').click()")
    assert opened.run(style, "body", "backgroundColor") != light
    opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert opened.run(style, "body", "backgroundColor") == light
        for kind in (".token.own", ".bar", ".part", ".only .swatch"):
            assert opened.run(style, kind, "printColorAdjust") == "exact", kind
            assert opened.run("return document.querySelector(arguments[0]).checkVisibility()", kind), kind
        for kind in ("#top", "#side", "a.action"):
            assert opened.run(style, kind, "display") == "none", kind
        assert opened.run("const m = document.getElementById('main'); return m.scrollHeight - m.clientHeight") <= 0
        assert opened.run("return document.documentElement.scrollHeight > innerHeight"), "it goes on over the pages"
    finally:
        opened.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
