"""Text as files hold it, or an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

PIECE = 100_000
"""Characters of `text_pieces`."""


def read_text(path: str | Path) -> str:
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8 (byte {error.start}); convert it to UTF-8") from error
    return _checked(text, path)


def text_pieces(path: str | Path) -> Iterator[str]:
    """A file's text: whole, or in pieces of at most 200,000 characters, which together are the text.

    All but the last have at least 50,000. They end at the end of a line or, where a line is longer than that, of a
    word. The file is read no further than the pieces that are asked for.
    """
    with _opened(path, "") as file:
        text = _checked(file.read(PIECE), path)
        while more := _checked(file.read(PIECE), path):
            half = len(text) // 2
            cut = text.rfind("\n", half) + 1 or max(text.rfind(" ", half), 0) or len(text)
            yield text[:cut]
            text = text[cut:] + more
        yield text


def json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The values in a file of JSON lines, each with the name of its line, for messages; empty lines are left out."""
    with _opened(path, "\n") as file:
        for number, line in enumerate(file, 1):
            if _checked(line, path).strip():
                where = f"{str(path)!r}, line {number},"
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where} is no JSON ({error})") from error
                yield where, value


@contextmanager
def _opened(path: str | Path, newline: str) -> Iterator[TextIO]:
    try:
        with Path(path).open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError:
        read_text(path)  # which says at what byte
        raise


def _checked(text: str, path: str | Path) -> str:
    if "\0" in text:
        raise ValueError(f"{str(path)!r} holds zero bytes, so it is no text; give a text file in UTF-8")
    return text
