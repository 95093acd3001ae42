"""A text of one's own: what is read from which file, and which file is named when it holds no text."""

import gzip
import json

import pytest

from sae_lens_hsae.storage.text_files import read_text
from sae_lens_hsae.text.documents import documents


def test_a_file_is_one_text_and_a_line_of_json_is_one(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo ü\n", encoding="utf-8")
    (tmp_path / "bom").write_text("\ufeffone", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one\\u2028x", "id": 1}\n\n"two"\n{"text": " "}\n')
    (tmp_path / "c.jsonl").write_text(json.dumps({"body": "one"}))
    assert list(documents(tmp_path / "a.txt")) == ["one\n\ntwo ü\n"]
    assert list(documents(tmp_path / "bom")) == ["one"]
    assert list(documents(tmp_path / "b.jsonl")) == ["one\u2028x", "two"]
    assert list(documents(tmp_path / "c.jsonl", column="body")) == ["one"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.md", "deep/c.txt", "picture.png", "z.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d.jsonl").write_text('{"text": "first"}\n{"text": "second"}')
    assert list(documents(tmp_path)) == ["a.md", "b.txt", "first", "second", "deep/c.txt", "z.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", gzip.compress(b"text", mtime=0), "is no text in UTF-8"),
        ("a.txt", "Grüße".encode("latin-1"), "is no text in UTF-8"),
        ("a.txt", b"text\0", "zero bytes"),
        ("a.txt", "text".encode("utf-16"), "is no text in UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"text', "line 2, is no JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": "x", "id": 1}', "line 2, has no text under column='text'"),
        ("a.jsonl", b"[1]", "line 1, has no text"),
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
    with pytest.raises(FileNotFoundError, match=r"holds no file that ends in \.txt, \.md, \.jsonl"):
        list(documents(tmp_path))
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none.txt")
