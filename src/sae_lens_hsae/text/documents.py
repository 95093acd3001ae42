"""A text of one's own: a text file, JSON lines, or a folder of such files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sae_lens_hsae.storage.text_files import json_lines, read_text
from sae_lens_hsae.text.brown import DOCUMENT, brown_corpus

JSON_LINES = (".jsonl", ".ndjson")
IN_FOLDERS = (".txt", ".md", *JSON_LINES)
"""Endings of the files that are read from a folder."""


def documents(path: str | Path, column: str = "text") -> Iterator[str]:
    """The texts at a path, none of them empty: a file is one, and so is each line of a ``.jsonl`` file.

    Args:
        path: a file of text or JSON lines; a folder, whose ``.txt``, ``.md`` and ``.jsonl`` files are read in the order
            of their paths, those in folders below it too; or the Brown Corpus (see `brown_corpus`).
        column: where JSON lines have their text.

    Raises:
        FileNotFoundError: if there is nothing at the path, or a folder holds no such file.
        ValueError: naming the file, if it holds no text.
    """
    path = Path(path)
    if path.suffix == ".tgz" or (path.is_dir() and any(DOCUMENT.fullmatch(each.name) for each in path.iterdir())):
        yield from brown_corpus(path)["text"]
        return
    if not path.exists():
        raise FileNotFoundError(f"text={str(path)!r} does not exist; give a text file, JSON lines or a folder of them")
    files = [path]
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix in IN_FOLDERS and each.is_file())
        if not files:
            raise FileNotFoundError(f"text={str(path)!r} holds no file that ends in {', '.join(IN_FOLDERS)}")
    for file in files:
        found = _of_lines(file, column) if file.suffix in JSON_LINES else [read_text(file)]
        yield from (text for text in found if text.strip())


def _of_lines(path: Path, column: str) -> Iterator[str]:
    for where, row in json_lines(path):
        text = row if isinstance(row, str) else row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            has = f"; it has {', '.join(row)}" if isinstance(row, dict) else ""
            raise ValueError(f"{where} has no text under column={column!r}{has}")
        yield text
