"""Text as files hold it, or an error that names the file."""

from __future__ import annotations

from pathlib import Path


def read_text(path: str | Path) -> str:
    """A file's text.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no text in UTF-8.
    """
    content = Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is no text in UTF-8 (byte {error.start}); convert it to UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{str(path)!r} holds zero bytes, so it is no text; give a text file in UTF-8")
    return text
