"""JSON files, and text from files, that may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unicodedata import category

JOINERS = "\u200c\u200d"
"""What parts or joins letters and emoji, between two of them; it is not seen itself."""
MAX_NUMBER = 2**63
"""JSON has whole numbers of any size. From here on they fit in no tensor, and nothing counted or set is as large."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a FileNotFoundError if there is none, a ValueError if it holds anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it holds no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object, but {type(value).__name__}")
    return value


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of 0 or more, below `MAX_NUMBER`."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER


def is_number(value: Any) -> bool:
    """Whether a value is a finite number below `MAX_NUMBER`, either sign."""
    # By comparison, which NaN fails: a whole number may be too large to be made a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MAX_NUMBER < value < MAX_NUMBER


def check_storable(name: str, value: Any) -> None:
    """Check that a setting can be written to JSON, before what comes earlier is lost; a ValueError says what to do."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        # The error tells a type, never a value, which may be secret.
        raise ValueError(
            f"{name} could not be saved with the SAE ({error}); write data types as strings ('bfloat16'), numbers "
            "as Python's, and other objects as dictionaries, such as quantization_config.to_dict()"
        ) from error


def printable(text: object) -> str:
    """Text for a message, with what would steer a terminal (escapes, reversed writing) spelled out."""
    text = str(text)

    def harmless(i: int, c: str) -> bool:
        joins = c in JOINERS and 0 < i < len(text) - 1
        return c.isprintable() or c == "\n" or category(c) == "Zs" or joins

    return "".join(c if harmless(i, c) else ascii(c)[1:-1] for i, c in enumerate(text))
