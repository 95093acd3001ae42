"""What the explorer page holds, without a browser."""

import re
from dataclasses import replace

import pytest
import torch
from hostile_page import HOSTILE
from page_blocks import array_of, blocks_of
from small_saes import WIDTHS

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.page import PageLimits, write_page
from sae_lens_hsae.text.token_text import whole_characters


def test_the_blocks_hold_what_the_dashboards_hold(hostile_sae, hostile_dashboards, hostile_page):
    blocks = blocks_of(hostile_page)
    n = hostile_sae.forest.n_features
    assert set(blocks) == {"forest", "vocabulary", "text-0", *(f"features-{i}" for i in range(-(-n // 7)))}
    texts = blocks["vocabulary"][0]["plain"]["tokens"]
    assert set(texts) <= {"", *HOSTILE}
    forest = blocks["forest"]
    assert torch.equal(array_of(forest, "parents").long(), hostile_sae.forest.parents)
    assert torch.allclose(array_of(forest, "frequency"), hostile_dashboards.frequency.float())
    slots, window = 6 + 3 + 2 + 2, 12
    for feature in range(n):
        block = blocks[f"features-{feature // 7}"]
        n_here = min(7, n - feature // 7 * 7)
        tokens = array_of(block, "tokens").view(n_here, slots, window)[feature % 7].flatten().tolist()
        expected = hostile_dashboards.token_ids[feature].flatten().tolist()
        assert [texts[token] for token in tokens] == ["" if id_ < 0 else HOSTILE[id_] for id_ in expected]
        shades = array_of(block, "shades").view(n_here, slots, window)[feature % 7]
        acts = hostile_dashboards.activations[feature].float()
        assert torch.equal(shades > 0, acts > 0), "no activation, however weak, looks silent"
        assert torch.allclose(
            shades / 255 * hostile_dashboards.max_activation[feature], acts, atol=0.01 * acts.max().item() + 1e-6
        )


def test_a_character_of_several_tokens_is_whole_in_contexts_and_bytes_elsewhere(
    hostile_sae, hostile_dashboards, tmp_path
):
    texts = ["<0xE2>", "<0x9C>", "<0x93>", " a", "<0xC3>", "<0xA9>"]

    def text_of(id_: int) -> str:
        return texts[id_ % len(texts)]

    blocks = blocks_of(write_page(hostile_dashboards, hostile_sae.forest, tmp_path / "p.html", text_of))
    shown = blocks["vocabulary"][0]["plain"]["tokens"]
    found = array_of(blocks["features-0"], "tokens").view(-1, hostile_dashboards.token_ids.shape[2])
    expected = hostile_dashboards.token_ids.flatten(0, 1)[: len(found)].tolist()
    wholes = set()
    for window, ids in zip(found.tolist(), expected, strict=True):
        of_window = whole_characters(["" if id_ < 0 else text_of(id_) for id_ in ids])
        assert [shown[number] for number in window] == of_window
        wholes |= {"✓", "é"}.intersection(of_window)
    assert wholes, "else nothing is tested"
    strongest = array_of(blocks["forest"], "strongest").int()
    assert {shown[number] for number in strongest[strongest > 0].tolist()} <= set(texts)


def test_childrens_shades_stand_with_their_parent_in_order(hostile_sae, hostile_dashboards, hostile_page):
    blocks, forest = blocks_of(hostile_page), hostile_sae.forest
    for i in range(-(-forest.n_features // 7)):
        of_block = range(i * 7, min(i * 7 + 7, forest.n_features))
        children = [child for feature in of_block for child in forest.children(feature)]
        shades = array_of(blocks[f"features-{i}"], "childShades").view(len(children), 9, 12)
        for row, child in enumerate(children):
            assert torch.equal(shades[row] > 0, hostile_dashboards.activations_on_parent[child] > 0)


def test_limits_cut_windows_around_the_peak(hostile_sae, hostile_dashboards, tmp_path):
    limits = PageLimits(n_top=2, n_sampled=1, n_counterexamples=0, window=5, features_per_block=100)
    path = write_page(hostile_dashboards, hostile_sae.forest, tmp_path / "p.html", str, limits=limits)
    block = blocks_of(path)["features-0"]
    shades = array_of(block, "shades").view(-1, 3, 5)
    strongest = hostile_dashboards.max_activation > 0
    assert (shades[strongest, 0].amax(1) == 255).all()
    assert array_of(block, "numbers").view(-1, 3)[:, 2].equal(hostile_dashboards.context_numbers[:, 6].int())


def test_only_hashed_scripts_and_styles_may_run(hostile_page):
    text = hostile_page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]
    written = re.sub(r'<script type="text/plain".*?</script>', "", text)  # base64 may spell anything
    assert "http" not in written.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_labels_may_be_as_json_has_them(hostile_dashboards, hostile_sae, tmp_path):
    labels = {"3": "dates", "2/0": "rivers", "weights": "w"}
    page = write_page(hostile_dashboards, hostile_sae.forest, tmp_path / "p.html", str, labels)
    assert blocks_of(page)["forest"][0]["plain"]["labels"] == {"3": "dates", str(WIDTHS[0] + WIDTHS[1]): "rivers"}


def test_what_is_of_another_forest_is_refused(hostile_dashboards, hostile_text, hostile_sae, tmp_path):
    other = FeatureForest(torch.full((sum(WIDTHS),), -1), WIDTHS)
    with pytest.raises(ValueError, match="collect them for this forest"):
        write_page(hostile_dashboards, other, tmp_path / "p.html", str)
    of_another = replace(hostile_text, forest=other)
    with pytest.raises(ValueError, match="explanations: number 0 is of another forest"):
        write_page(hostile_dashboards, hostile_sae.forest, tmp_path / "p.html", str, explanations=[of_another])
    assert not list(tmp_path.iterdir())
