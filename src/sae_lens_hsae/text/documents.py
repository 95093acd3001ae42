"""A text of one's own: a text file, JSON lines, or a folder of such files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sae_lens_hsae.storage.text_files import json_lines, text_pieces
from sae_lens_hsae.text.brown import DOCUMENT, brown_corpus

JSON_LINES = (".jsonl", ".ndjson")
IN_FOLDERS = (".txt", ".md", *JSON_LINES)
"""Endings of the files that are read from a folder."""
OF_DATA_SETS = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
"""Endings of files that hold no plain text, and that `datasets` reads."""


def documents(path: str | Path, column: str = "text") -> Iterator[str]:
    """The texts at a path, none of them empty: a file is one, and so is each line of a ``.jsonl`` file.

    A file of more than 100,000 characters comes in pieces, each a text, see `text_pieces`. Of JSON lines the ``column``
    is read, and rows whose text is null are left out. Of a folder the ``.txt``, ``.md`` and ``.jsonl`` files are read
    in the order of their paths, those in folders below it too; it may also be the Brown Corpus (`brown_corpus`). No
    file is read further than its texts are asked for. Errors name the file.
    """
    path = Path(path)
    if path.suffix.lower() == ".tgz" or (
        path.is_dir() and any(DOCUMENT.fullmatch(each.name) for each in path.iterdir())
    ):
        yield from brown_corpus(path)["text"]
        return
    if not path.exists():
        raise FileNotFoundError(f"text={str(path)!r} does not exist; give a text file, JSON lines or a folder of them")
    files = [path]
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file() and each.suffix.lower() in IN_FOLDERS)
    if not files or files[0].suffix.lower() in OF_DATA_SETS:
        raise ValueError(
            f"text={str(path)!r} is no plain text, nor a folder of files that end in {', '.join(IN_FOLDERS)}; a folder "
            "of other files is read as a data set: dataset='FOLDER' (to train dataset_path='FOLDER')"
        )
    for file in files:
        found = _of_lines(file, column) if file.suffix.lower() in JSON_LINES else text_pieces(file)
        yield from (text for text in found if text.strip())


def _of_lines(path: Path, column: str) -> Iterator[str]:
    for where, row in json_lines(path):
        if isinstance(row, dict) and column not in row:
            raise ValueError(f"{where} has no text under column={column!r}; it has {', '.join(row) or 'nothing'}")
        text = row[column] if isinstance(row, dict) else row
        if not isinstance(text, str | None):
            under = f" under column={column!r}" if isinstance(row, dict) else ""
            raise ValueError(f"{where} has no text{under}, but {text!r:.60}")
        if text is not None:
            yield text
