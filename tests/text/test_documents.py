"""A text of one's own: what is read from which file, and which file is named when it holds no text."""

import gzip
import json

import pytest
from datasets import Dataset
from host_helpers import runner_config
from sae_lens.saes.sae import SAEMetadata
from texts_of_words import tokenizer_of_words

from sae_lens_hsae.storage.text_files import read_text
from sae_lens_hsae.text.documents import documents
from sae_lens_hsae.text.rows import TextSource, rows_on_disk, text_rows


def test_a_file_is_one_text_and_a_line_of_json_is_one(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo ü\n", encoding="utf-8")
    (tmp_path / "bom").write_text("\ufeffone", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one\\u2028x", "id": 1}\n\n"two"\n{"text": " "}\n')
    (tmp_path / "c.JSONL").write_text(json.dumps({"body": "one"}))
    assert list(documents(tmp_path / "a.txt")) == ["one\n\ntwo ü\n"]
    assert list(documents(tmp_path / "bom")) == ["one"]
    assert list(documents(tmp_path / "b.jsonl")) == ["one\u2028x", "two"]
    assert list(documents(tmp_path / "c.JSONL", column="body")) == ["one"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.md", "deep/c.TXT", "picture.png", "z.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d.jsonl").write_text('{"text": "first"}\n{"text": "second"}')
    assert list(documents(tmp_path)) == ["a.md", "b.txt", "first", "second", "deep/c.TXT", "z.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", gzip.compress(b"text", mtime=0), "is no text in UTF-8"),
        ("a.txt", b"text\0", "zero bytes"),
        ("a.jsonl", b'{"text": "fine"}\n{"text', "line 2, is no JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": "x", "id": 1}', "line 2, has no text under column='text'"),
        ("a.jsonl", b'{"text": ["fine"]}', r"line 1, has no text under column='text', but \['fine'\]"),
        ("a.jsonl", b"{}", "line 1, has no text under column='text'; it has nothing"),
        ("a.jsonl", b"[1]", r"line 1, has no text, but \[1\]"),
        ("a.jsonl", b'"fine"\n"\xff"', r"is no text in UTF-8 \(byte 8\)"),
        ("a.jsonl", b'"fine"\n"\0"', "zero bytes"),
    ],
)
def test_a_file_without_text_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=message) as error:
            list(documents(source))
        assert str(path) in str(error.value)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt' does not exist"):
        list(documents(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match=r"is no plain text, nor a folder of files that end in \.txt, \.md, \.jsonl"):
        list(documents(tmp_path))
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.txt")


@pytest.mark.parametrize("name", ["data.json", "data.csv", "data.Parquet", "data.jsonl.gz", "data.txt.zst"])
def test_a_file_that_its_ending_calls_no_plain_text_is_refused(tmp_path, name):
    (tmp_path / name).write_text('[{"text": "one"}]')
    with pytest.raises(ValueError, match=f"{name}' is no plain text, .*dataset='FOLDER'"):
        list(documents(tmp_path / name))


def test_rows_without_a_text_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "one"}\nnull\n"two"')
    assert list(documents(tmp_path / "a.jsonl")) == ["one", "two"]
    Dataset.from_dict({"text": [None, "w1 w2", None, "w3"]}).save_to_disk(tmp_path / "set")
    metadata = SAEMetadata(context_size=3, sequence_separator_token=None)
    rows = text_rows(TextSource(dataset=tmp_path / "set"), metadata, tokenizer_of_words(), 3)["tokens"]
    assert tokenizer_of_words().convert_ids_to_tokens(rows[0]) == ["w1", "w2", "w3"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", " ", ""])
def test_a_large_file_comes_in_pieces_that_together_are_the_text(tmp_path, newline):
    line = "\u2028ü" * 40 if not newline else " ".join(["größer"] * 12)
    text = newline.join([line] * 6000)
    (tmp_path / "large.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    pieces = list(documents(tmp_path / "large.txt"))
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert all(50_000 <= len(piece) <= 200_000 for piece in pieces[:-1])
    if newline.strip(" "):
        assert all(piece.endswith("größer" + newline) for piece in pieces[:-1])
    elif newline:
        assert all(piece.startswith(" größer") for piece in pieces[1:])
    (tmp_path / "small.txt").write_text(text[:100_000], newline="")
    assert list(documents(tmp_path / "small.txt")) == [text[:100_000]]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_is_read_no_further_than_is_asked_for(tmp_path, name):
    lines = [json.dumps("a line of text")] * 40_000
    (tmp_path / name).write_bytes("\n".join(lines).encode() + b"\n\xff")
    texts = documents(tmp_path / name)
    assert next(texts).strip('"').startswith("a line of text")
    with pytest.raises(ValueError, match=rf"{name}' is no text in UTF-8 \(byte {40_000 * 17}\)"):
        list(texts)


def test_a_file_as_a_data_set_is_refused_before_the_hub_is_asked(tmp_path):
    for name, remedy in (("a.jsonl", "give it as text='.*', or give a folder"), ("a.csv", "give a folder")):
        (tmp_path / name).write_text('{"text": "one"}')
        with pytest.raises(ValueError, match=f"^dataset='.*{name}' is a file; {remedy} that holds it alone"):
            TextSource(dataset=tmp_path / name)
        with pytest.raises(ValueError, match=f"^dataset_path='.*{name}' is a file; {remedy} that holds it alone"):
            rows_on_disk(runner_config(tmp_path, dataset_path=str(tmp_path / name)))
