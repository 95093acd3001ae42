"""What is held out from training: by content, and never read by what trains."""

from itertools import islice

import pytest
from sae_lens.saes.sae import SAEMetadata
from test_as_trained import configured, tokenizer_of_words

from sae_lens_hsae.text import installed
from sae_lens_hsae.text.installed import installed_text, is_held_out
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
    monkeypatch.setattr(installed, "_texts", lambda: iter(found))
    monkeypatch.setattr(installed, "HELD_OUT_OF", 3)
    return found


def test_both_parts_are_the_whole(texts):
    parts = [list(installed_text(held_out)) for held_out in (True, False)]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(installed_text()) == sorted(texts)
    assert not set(parts[0]) & set(parts[1])


def test_what_trains_and_what_measures_share_no_text(texts, tmp_path):
    cfg = configured(tmp_path, tmp_path, context_size=4, prepend_bos=False)
    tokenizer = tokenizer_of_words()
    metadata = SAEMetadata(context_size=4, prepend_bos=False)
    trained = {id_ for row in training_rows(cfg, tokenizer, 20)["tokens"] for id_ in row}
    measured = {id_ for row in text_rows(TextSource(), metadata, tokenizer, 12)["tokens"] for id_ in row}
    assert trained & measured <= set(tokenizer.all_special_ids)
    assert len(trained) > 10
    assert len(measured) > 5
    assert len(texts) == 30


def test_the_beginning_mixes_the_packages():
    """The first docstrings come from here and there, not from the front of the alphabet."""
    first = list(islice(installed_text(), 40))
    assert len(set(first)) > 30


def test_it_is_said_what_is_read_and_whether_it_was_trained_on():
    metadata = SAEMetadata(dataset_path="my.txt")
    assert "the 1 in 10 that training leaves out" in TextSource().said(metadata)
    assert TextSource("my.txt").said(metadata) == "Text: text='my.txt'; the SAE was trained on it"
    assert TextSource(dataset="other").said(metadata) == "Text: dataset='other'"
