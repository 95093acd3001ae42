"""Text as files hold it, or an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_text(path: str | Path) -> str:
    """A file's text."""
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8 (byte {error.start}); convert it to UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{str(path)!r} holds zero bytes, so it is no text; give a text file in UTF-8")
    return text


def json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The values in a file of JSON lines, each with the name of its line, for messages; empty lines are left out."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{str(path)!r}, line {number},"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is no JSON ({error})") from error
            yield where, value
