"""After training text is read as it was in training: SAELens' own store is the reference."""

import io
import json
import math
import re
from typing import Any

import pytest
import torch
from datasets import Dataset
from host_helpers import CONTEXT, D_MODEL, VOCABULARY, restored_signal_handlers, sae_at
from huggingface_hub import constants
from rich.console import Console
from sae_lens import ActivationsStore
from sae_lens.load_model import load_model
from sae_lens.saes.sae import SAEMetadata
from texts_of_words import (
    CHAT,
    TEXTS,
    configured,
    explain_text,
    read_back,
    save_model,
    text_folder,
    tokenizer_of_words,
    trained,
)
from tokenizers.processors import TemplateProcessing
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from sae_lens_hsae import HierarchicalSAETrainingRunner
from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.cli.collected import read_collected
from sae_lens_hsae.cli.evaluate import evaluate
from sae_lens_hsae.cli.explore import explore
from sae_lens_hsae.evaluation.cross_entropy import cross_entropy_recovered
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.contrast import text_activations
from sae_lens_hsae.interpret.explain import explain
from sae_lens_hsae.interpret.feature_cache.text import load_tokenizer, tokens_and_activations
from sae_lens_hsae.text.as_trained import excluded_tokens, positions
from sae_lens_hsae.text.rows import TextSource, text_rows


@pytest.mark.parametrize(
    ("special", "training"),
    [
        ({}, {}),
        ({}, {"prepend_bos": False}),
        ({}, {"sequence_separator_token": "eos"}),
        ({}, {"sequence_separator_token": None}),
        ({}, {"sequence_separator_token": 7, "prepend_bos": False}),
        ({}, {"disable_concat_sequences": True}),
        ({}, {"context_size": 1, "prepend_bos": False}),
        ({}, {"context_size": 2}),
        ({"bos": None}, {"sequence_separator_token": "eos"}),
        ({"bos": None}, {}),
    ],
)
def test_rows_are_those_that_training_reads(tmp_path, special, training):
    model = load_model("AutoModelForCausalLM", str(save_model(tmp_path / "model", **special)), device="cpu")
    cfg = configured(tmp_path, tmp_path / "model", **training)
    store = ActivationsStore.from_config(model, cfg, override_dataset=Dataset.from_dict({"text": TEXTS}))
    expected = store.get_batch_tokens(20)
    names = ("context_size", "prepend_bos", "sequence_separator_token", "disable_concat_sequences")
    metadata = SAEMetadata(**{name: getattr(cfg, name) for name in names})
    source = TextSource(dataset=text_folder(tmp_path / "text"))
    rows = torch.tensor(text_rows(source, metadata, model.tokenizer, 20 * cfg.context_size)["tokens"][:])
    assert len(rows) >= 20
    assert torch.equal(rows[:20], expected)


def test_where_nothing_is_known_of_separators_the_end_token_parts_texts(tmp_path):
    source, tokenizer = TextSource(dataset=text_folder(tmp_path / "text", ["w1 w2", "w3 w4 w5"])), tokenizer_of_words()
    (row,) = text_rows(source, SAEMetadata(context_size=5), tokenizer, 5)["tokens"]
    assert tokenizer.convert_ids_to_tokens(row) == ["w1", "w2", "<eos>", "w3", "w4"]
    (row,) = text_rows(source, SAEMetadata(context_size=5), tokenizer_of_words(eos=None), 5)["tokens"]
    assert tokenizer.convert_ids_to_tokens(row) == ["w1", "w2", "w3", "w4", "w5"]


def test_where_the_tokenizer_ends_texts_by_itself_its_token_parts_them(tmp_path):
    tokenizer = tokenizer_of_words(bos=None, eos=None)
    ends = [("<start_of_turn>", 2), ("<end_of_turn>", 3)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{CHAT[0]} $A {CHAT[1]}", special_tokens=ends)
    source = TextSource(dataset=text_folder(tmp_path / "text", ["w1 w2", "w3 w4 w5"]))
    (row,) = text_rows(source, SAEMetadata(context_size=5, sequence_separator_token="bos"), tokenizer, 5)["tokens"]
    assert tokenizer.convert_ids_to_tokens(row) == ["w1", "w2", "<end_of_turn>", "w3", "w4"]


def test_a_context_without_room_for_text_is_told_and_ends(tmp_path):
    source = TextSource(dataset=text_folder(tmp_path / "text"))
    with pytest.warns(UserWarning, match="context_size=1 and prepend_bos=True: every context is the first token alone"):
        rows = text_rows(source, SAEMetadata(context_size=1, prepend_bos=True), tokenizer_of_words(), 50)
    assert rows["tokens"][:] == [[0]] * 50


def test_texts_that_are_all_too_short_alone_are_told(tmp_path):
    metadata = SAEMetadata(context_size=9, disable_concat_sequences=True)
    source = TextSource(dataset=text_folder(tmp_path / "text", ["w1 w2 w3"] * 20))
    with pytest.raises(ValueError, match="holds no text that fills a context of 9 by itself"):
        text_rows(source, metadata, tokenizer_of_words(), 100)


def test_a_split_or_a_column_of_nothing_is_refused():
    with pytest.raises(ValueError, match="split='test' names a split of a data set, but none is given"):
        TextSource("x.txt", split="test")
    with pytest.raises(ValueError, match="column='ids' names a column, but no file or data set is given"):
        TextSource(column="ids")


def test_a_text_that_the_tokenizer_hardly_knows_is_told(tmp_path, recwarn):
    read = {"metadata": SAEMetadata(context_size=5), "tokenizer": tokenizer_of_words(), "n_tokens": 10}
    text_rows(TextSource(dataset=text_folder(tmp_path / "known", ["w1 w2 Ω"] * 5)), **read)
    assert not [each for each in recwarn if "does not know" in str(each.message)]
    with pytest.warns(UserWarning, match="foreign'.*: 75% of its tokens are <unk>, .* such as another script; give a"):
        text_rows(TextSource(dataset=text_folder(tmp_path / "foreign", ["我们 在 北京 w1"] * 5)), **read)


@pytest.mark.parametrize(("given", "ids"), [(True, [0, 1]), (False, []), ([2, 9], [2, 9])])
def test_what_training_left_out_is_left_out_and_chats_are_kept(tmp_path, given, ids):
    texts = [f"{CHAT[0]} {text} {CHAT[1]} <eos>" for text in TEXTS]
    store, folder = trained(tmp_path, save_model(tmp_path / "model"), texts, exclude_special_tokens=given)
    left_out = [] if store.exclude_special_tokens is None else store.exclude_special_tokens.tolist()
    sae = load_hierarchical_sae(folder)
    assert sorted(excluded_tokens(sae, load_tokenizer(sae))) == sorted(left_out)
    assert sorted(left_out) == ids
    evaluation = evaluate(folder, 640, TextSource(dataset=text_folder(tmp_path / "text", texts)))
    rows = text_rows(TextSource(dataset=tmp_path / "text"), sae.cfg.metadata, load_tokenizer(sae), 640)
    kept = ~torch.isin(torch.tensor(rows["tokens"][:]), torch.tensor(left_out, dtype=torch.long))
    assert evaluation.n_tokens == min(640, kept.sum())


def test_without_a_context_size_contexts_are_as_long_as_the_model_takes(tmp_path):
    _, folder = trained(tmp_path, save_model(tmp_path / "model"))
    sae, model = read_back(folder)
    source = TextSource(dataset=text_folder(tmp_path / "text"))
    as_trained = evaluate(folder, 640, source)
    told = json.loads((folder / "cfg.json").read_text())
    del told["metadata"]["context_size"]
    (folder / "cfg.json").write_text(json.dumps(told))
    assert load_hierarchical_sae(folder).cfg.metadata.context_size is None
    assert evaluate(folder, 640, source) == as_trained
    page = explore(folder, n_tokens=640, text=source)
    assert page.is_file()
    # Nor is a text longer than the model takes a matter of its own error, an IndexError.
    (x,) = text_activations(sae, model, ["w1 " * 3 * CONTEXT])
    assert len(x) == CONTEXT - 1
    sae.cfg.metadata.context_size = None
    rows = Dataset.from_dict({"tokens": [[1] * 128] * 2})
    with pytest.raises(ValueError, match=f"context_size .* 128 tokens, but the model takes at most {CONTEXT}"):
        next(tokens_and_activations(sae, model, rows))


def test_a_hook_point_that_the_model_lacks_is_named_wherever_it_is_read(tmp_path):
    store, folder = trained(tmp_path, save_model(tmp_path / "model"))
    sae, model = read_back(folder)
    sae.cfg.metadata.hook_name = "transformer.h.7"
    rows = Dataset.from_dict({"tokens": [[1] * CONTEXT]})
    for read in (
        lambda: list(tokens_and_activations(sae, model, rows)),
        lambda: list(text_activations(sae, model, ["w1"])),
        lambda: cross_entropy_recovered(sae, model, store, n_batches=1),
    ):
        with pytest.raises(ValueError, match=r"'transformer\.h\.7' is no hook point .* it has transformer\.h\.0"):
            read()


def test_a_measurement_never_takes_the_place_of_one_on_more_tokens(tmp_path, capsys, recwarn):
    """Some tokens that are read are not measured: the same call again still renews its own."""
    _, folder = trained(tmp_path, save_model(tmp_path / "model"), seqpos_slice=(5, None))
    call = ["evaluate", str(folder), "--n-tokens", "640", "--json"]
    long, short = text_folder(tmp_path / "long"), text_folder(tmp_path / "short", [TEXTS[50]] * 3)
    for _ in range(2):
        cli.main([*call, "--text", str(long)])
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["n_tokens"] < 640
    assert "to read" not in said.err
    assert not [each for each in recwarn if "stays as it is" in str(each.message)]
    standing = (folder / "evaluation.json").read_text()
    with pytest.warns(UserWarning, match=r"evaluation.json stays as it is: .* --output FILE, or a longer text"):
        cli.main([*call, "--text", str(short)])
    assert (folder / "evaluation.json").read_text() == standing
    said = capsys.readouterr()
    measured = json.loads(said.out)["n_tokens"]
    assert 0 < measured < json.loads(standing)["evaluation"]["n_tokens"]
    assert re.search(r"It fills contexts of \d+ tokens in all, fewer than the 640 to read", said.err)
    cli.main([*call, "--text", str(short), "--output", str(tmp_path / "own.json")])
    assert json.loads((tmp_path / "own.json").read_text())["evaluation"]["n_tokens"] == measured


@pytest.mark.parametrize("seqpos_slice", [(5, None), (None, -3), (1, 20, 4)])
def test_positions_are_those_that_were_trained_on(tmp_path, seqpos_slice):
    store, folder = trained(tmp_path, save_model(tmp_path / "model"), seqpos_slice=seqpos_slice)
    sae, model = read_back(folder)
    read = list(range(CONTEXT)[slice(*seqpos_slice)])
    rows = torch.tensor([[0, *range(6, 6 + CONTEXT - 1)]] * 2)
    ids, x = next(tokens_and_activations(sae, model, Dataset.from_dict({"tokens": rows.tolist()})))
    assert torch.equal(ids, rows[:, read])
    torch.testing.assert_close(x, store.get_activations(rows))
    assert x.shape[1] == len(read) == store.training_context_size

    evaluation = evaluate(folder, 640, TextSource(dataset=text_folder(tmp_path / "text")))
    assert evaluation.n_tokens == min(640, math.ceil(640 / (CONTEXT - 1)) * len(read))

    text = " ".join(f"w{i}" for i in range(1, CONTEXT))
    found = explain_text(folder, text)
    of_text = [position - 1 for position in range(CONTEXT)[slice(*seqpos_slice)] if position]
    assert (~found.level_shares.isnan().all(1)).nonzero().flatten().tolist() == of_text
    assert set(found.positions.tolist()) <= set(of_text)
    (of_contrast,) = text_activations(sae, model, [text])
    ids = torch.tensor([[0, *model.tokenizer(text)["input_ids"]]])
    torch.testing.assert_close(of_contrast, store.get_activations(ids)[0, (0 if read[0] else 1) :])


def test_positions_from_the_end_are_from_that_of_a_context_however_short_the_text(tmp_path):
    _, folder = trained(tmp_path, save_model(tmp_path / "model"), seqpos_slice=(2, -3))
    read = explain_text(folder, "w1 w2 w3 w4 w5")
    assert (~read.level_shares.isnan().all(1)).nonzero().flatten().tolist() == [1, 2, 3, 4], "all but its first token"
    said = io.StringIO()
    Console(file=said, width=200).print(read)
    assert "w1  left out: a position that was not trained on\n" in said.getvalue()
    assert "On 4 tokens " in said.getvalue()
    sae, model = read_back(folder)
    (of_contrast,) = text_activations(sae, model, ["w1 w2 w3 w4"])
    assert len(of_contrast) == 3
    with pytest.raises(ValueError, match=r"texts: number 0 .* has no token at a position that was trained on"):
        list(text_activations(sae, model, ["w1"]))


@pytest.mark.parametrize("wrong", [5, ["a"], [1, 2, 0], [1, 2, -1], [1, 2, 3, 4]])
def test_positions_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="seqpos_slice"):
        positions(SAEMetadata(seqpos_slice=wrong))


def test_a_model_without_a_first_token_is_read_without_one(tmp_path):
    model, text = save_model(tmp_path / "model", bos=None), text_folder(tmp_path / "text")
    _, folder = trained(tmp_path, model)
    assert load_hierarchical_sae(folder).cfg.metadata.prepend_bos
    assert evaluate(folder, 320, TextSource(dataset=text)).n_tokens == 320
    assert evaluate(folder, 320, str(text)).n_tokens == 320
    (folder / "labels.json").write_text('{"weights": "of an earlier training", "0": "x"}')
    with pytest.warns(UserWarning, match="are for other weights .*; the page is written without them"):
        explore(folder, n_tokens=320, text=text, renew=True)
    (folder / "labels.json").unlink()
    assert [token.strip() for token in explain_text(folder, "w1 w2").tokens] == ["w1", "w2"]
    sae, loaded = read_back(folder)
    assert [len(x) for x in text_activations(sae, loaded, ["w1 w2", "w1 w2 w3"])] == [1, 2], "no first token"
    with pytest.raises(ValueError, match=r"texts: number 0 \('w3'\) has no token"):
        list(text_activations(sae, loaded, ["w3"]))
    sae.cfg.metadata.sequence_separator_token = "eos"
    read = [explain(sae, loaded, "w1 w2")]
    sae.cfg.metadata.prepend_bos = False
    read.append(explain(sae, loaded, "w1 w2"))
    assert read[0].level_shares.equal(read[1].level_shares), "without BOS, asking for it changes nothing"
    assert read[0].outlying == ()


ALIAS, OFFICIAL = "pythia-70m", "EleutherAI/pythia-70m"


@pytest.fixture
def alias(tmp_path, monkeypatch):
    """A saved SAE of a model that TransformerLens knows by an alias; a cache stands in for the hub."""
    cached = tmp_path / "hub" / f"models--{OFFICIAL.replace('/', '--')}"
    snapshot = cached / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    tokenizer_of_words().save_pretrained(snapshot)
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": D_MODEL,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, **size))
    model.save_pretrained(snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    sae = sae_at("blocks.0.hook_resid_post", model_name=ALIAS, context_size=16, prepend_bos=True)
    sae.save_inference_model(tmp_path / "sae")
    return tmp_path / "sae", TextSource(dataset=text_folder(tmp_path / "text"))


def test_a_model_by_its_alias_has_its_tokenizer_in_every_command(alias, capsys):
    folder, text = alias
    assert evaluate(folder, 160, text).n_tokens
    explore(folder, n_tokens=320, text=text)
    first = (folder / "explorer.html").read_bytes()
    explore(folder)  # from the dashboards, without the model
    assert (folder / "explorer.html").read_bytes() == first
    _, text_of = read_collected(folder)  # as label, judge and clarity do
    assert text_of(5) == " w1"
    cli.main(["clarity", str(folder)])
    assert [token.strip() for token in explain_text(folder, "w1 w2").tokens] == ["w1", "w2"]
    for name, words in (("a", "w1 w2 w3"), ("b", "w4 w5 w6")):
        (folder / f"{name}.txt").write_text("\n".join(f"{words} w{i}" for i in range(7, 17)))
    cli.main(["contrast", str(folder), str(folder / "a.txt"), str(folder / "b.txt")])
    assert "features differ" in capsys.readouterr().out


def test_a_tokenizer_that_is_not_here_is_named(alias):
    sae = load_hierarchical_sae(alias[0])
    sae.cfg.metadata.model_name = "gemma-2-2b"
    with pytest.raises(OSError, match="model_name='gemma-2-2b' gives no tokenizer 'google/gemma-2-2b'"):
        load_tokenizer(sae)
    sae.cfg.metadata.model_name = None
    with pytest.raises(ValueError, match="hold no model_name"):
        load_tokenizer(sae)


def test_a_model_that_commands_will_not_load_may_be_loaded_and_given_to_them(tmp_path):
    _, folder = trained(tmp_path, save_model(tmp_path / "model"))
    saved = json.loads((folder / "cfg.json").read_text())
    saved["metadata"]["model_from_pretrained_kwargs"] = {"quantization_config": {"load_in_4bit": True}}
    (folder / "cfg.json").write_text(json.dumps(saved))
    text = TextSource(dataset=text_folder(tmp_path / "text"))
    model = load_model("AutoModelForCausalLM", str(tmp_path / "model"))
    for call in (evaluate, explore):
        with pytest.raises(ValueError, match=r"quantization_config.*out of cfg\.json.*load it yourself"):
            call(folder, text=text, n_tokens=320)
        call(folder, text=text, n_tokens=320, model=model)
    assert (folder / "explorer.html").is_file()


@pytest.mark.parametrize("column", ["tokens", "input_ids", "mine"])
def test_rows_of_token_ids_are_cut_as_training_cuts_them(tmp_path, capsys, column):
    model = save_model(tmp_path / "model")
    ids = [[(7 * i + j) % VOCABULARY for j in range(CONTEXT)] for i in range(60)]
    rows = Dataset.from_dict({"tokens": ids})
    cfg = configured(tmp_path, model, context_size=20, is_dataset_tokenized=True)
    with restored_signal_handlers():
        HierarchicalSAETrainingRunner(cfg, override_dataset=rows).run()
    folder, data = str(tmp_path / "out"), str(tmp_path / "rows")
    Dataset.from_dict({column: ids}).with_format("torch").save_to_disk(data)
    call = ["evaluate", folder, "--dataset", data, "--n-tokens=400", *(["--column=mine"] if column == "mine" else [])]
    cli.main(call)
    assert "400 tokens" in capsys.readouterr().out
    source = TextSource(dataset=data, column="mine" if column == "mine" else "text")
    sae = load_hierarchical_sae(folder)
    tokenizer = load_tokenizer(sae)
    assert text_rows(source, sae.cfg.metadata, tokenizer, 19 * 20)["tokens"][:] == [row[:20] for row in ids[:20]]
    wider = SAEMetadata(context_size=CONTEXT + 1, prepend_bos=False)
    with pytest.raises(ValueError, match=rf"column='{column}' has 32 tokens in row 0, fewer than context_size=33;"):
        text_rows(source, wider, tokenizer, 100)
    Dataset.from_dict({column: [[VOCABULARY] * 20]}).save_to_disk(tmp_path / "foreign")
    foreign = TextSource(dataset=tmp_path / "foreign", column=source.column)
    with pytest.raises(ValueError, match=r"has the token 100 in row 0, and the model's tokenizer has 100;"):
        text_rows(foreign, sae.cfg.metadata, tokenizer, 100)


def test_a_folder_called_as_an_alias_has_its_own_tokenizer(tmp_path, monkeypatch):
    save_model(tmp_path / ALIAS)
    monkeypatch.chdir(tmp_path)
    sae = sae_at("blocks.0.hook_resid_post", model_name=ALIAS, context_size=16, prepend_bos=True)
    assert load_tokenizer(sae).name_or_path == ALIAS
