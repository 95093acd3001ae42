"""Words in their context, and trees of concepts drawn with them."""

import pytest
import torch
from planted import planted_dashboards

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.forest.concepts import Concepts
from sae_lens_hsae.interpret.family_text import draw_family
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.snippet import snippet


@pytest.mark.parametrize(
    ("texts", "place", "shown"),
    [
        ([" the", " bio", "logy", " of", " cells"], 1, "the «biology» of cells"),
        ([" the", " bio", "logy", " of", " cells"], 2, "the «biology» of cells"),
        ([" a", ".", "b"], 1, "a«.»b"),
        (["one"], 0, "«one»"),
        ([" one", "\n", "\n", " two  ", " three"], 3, "one «two» three"),
        (
            [f" w{i}" for i in range(40)],
            20,
            "…w11 w12 w13 w14 w15 w16 w17 w18 w19 «w20» w21 w22 w23 w24 w25 w26 w27 w28 w29…",
        ),
        ([" number", " ", "1", "."], 1, "number« »1."),
        ([" end", "\n", "Then"], 1, "end« »Then"),
        ([" a", " <0xE6>", "<0x97>", "<0xA5>", "<0xE6>", "<0x9C>", "<0xAC>"], 2, "a «日»本"),
        (list("在北京学习" * 20), 50, f"…{'在北京学习' * 8}«在»{'北京学习在' * 8}…"),
    ],
)
def test_a_word_stands_whole_amid_its_text(texts, place, shown):
    assert snippet(texts, place) == shown


TEXTS = [" science", " biology", " cells", " physics", "[SEP]", " the", " of", " a"]
PARENTS = {4: 0, 5: 0, 6: 0, 13: 4, 14: 4, 15: 6}


@pytest.fixture(scope="module")
def dashboards() -> Dashboards:
    """Feature 0 fires on the sciences, 4 is its copy, 13 and 14 are the copy's children; 5 never fires."""
    fires_on = {0: (0, 1, 2, 3), 4: (0, 1, 2, 3), 13: (1, 2), 14: (3,), 6: (0,), 15: (0,)}
    strengths = {feature: {token: 1 + 0.1 * token for token in tokens} for feature, tokens in fires_on.items()}
    contexts = [[5, 0, 6, 1, 4, 5, 2, 7], [7, 3, 6, 2, 4, 5, 6, 7]] * 8
    return planted_dashboards(strengths, PARENTS, contexts)


def test_a_tree_shows_copies_as_one_and_contexts_no_further_than_their_text(dashboards):
    forest = FeatureForest(dashboards.parents, dashboards.level_widths)
    is_copy = torch.zeros(len(forest), dtype=torch.bool)
    is_copy[[4, 15]] = True
    labels = {0: "science", 13: "biology · cells", 14: "physics", 6: "science"}
    separators = frozenset(["[SEP]"])
    drawn = draw_family(Concepts(forest, is_copy), 0, dashboards, labels, TEXTS.__getitem__, separators)
    assert drawn.splitlines() == [
        "0/0 = 1/0     science          a «physics» of cells",
        "├─ 1/2 = 2/2  science          the «science» of biology",
        "├─ 2/1        physics          a «physics» of cells",
        "├─ 2/0        biology · cells  the «cells» a",
        "└─ 1/1        –                never fires",
    ]


def test_of_many_children_some_are_drawn_and_the_others_counted(dashboards):
    parents = torch.full((33,), -1)
    parents[13:21] = 4
    forest = FeatureForest(parents, dashboards.level_widths)
    drawn = draw_family(
        Concepts(forest, torch.zeros(33, dtype=torch.bool)), 4, dashboards, {4: "\x1b[31m"}, TEXTS.__getitem__
    )
    assert len(drawn.splitlines()) == 7
    assert drawn.splitlines()[-1].strip() == "… 3 more"
    assert "├─ 2/4" in drawn.splitlines()[5]
    assert "\x1b" not in drawn, "a label steers no terminal"
