"""Real text without a network: an English dictionary, or what the installed packages say of themselves."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from sae_lens_hsae.text.dictionary import PACKAGE as DICTIONARY
from sae_lens_hsae.text.dictionary import definitions, dictionary_folder

MIN_DOCSTRING = 80
"""Characters a docstring needs; shorter ones are mostly names again."""

MAX_TOKENS_PER_TEXT = 2000
"""Longer texts are cut, so that none dominates."""

HELD_OUT_OF = 10
"""One text in this many is held out."""


def is_held_out(text: str) -> bool:
    """Whether a text is for measuring and never trained on: by its content, so that all copies of it are."""
    return _order(text) % HELD_OUT_OF == 0


def installed_text(held_out: bool | None = None) -> Iterator[str]:
    """The dictionary's definitions; without it `package_text`. In a fixed order that mixes entries, or packages.

    Args:
        held_out: True for the texts that are held out from training, False for the others, None for all.
    """
    folder = dictionary_folder()
    for text in package_text() if folder is None else sorted(definitions(folder), key=_order):
        if held_out is None or is_held_out(text) == held_out:
            yield text


def installed_name() -> str:
    """What `installed_text` reads."""
    if dictionary_folder() is None:
        return "READMEs and docstrings of the installed packages"
    return f"definitions of the English dictionary in the package {DICTIONARY}"


def package_text() -> Iterator[str]:
    """READMEs, then docstrings, of the installed Python packages."""
    readmes = ((each.read_text("METADATA") or "").partition("\n\n")[2] for each in distributions())
    yield from sorted(filter(str.strip, readmes), key=_order)
    root = Path(sysconfig.get_path("purelib"))
    for path in sorted(root.rglob("*.py"), key=lambda each: _order(str(each.relative_to(root)))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's escape sequences
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) > MIN_DOCSTRING:
                    yield docstring


def _order(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
