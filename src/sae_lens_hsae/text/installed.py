"""Real text that any machine has: READMEs and docstrings of the installed Python packages."""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

MIN_DOCSTRING = 80
"""Characters a docstring needs; shorter ones are mostly names again."""

MAX_TOKENS_PER_TEXT = 2000
"""Longer texts are cut, so that none dominates."""


def installed_text() -> Iterator[str]:
    """READMEs, then docstrings, of the installed Python packages, in a fixed order."""
    for distribution in sorted(distributions(), key=lambda each: each.metadata["Name"].lower()):
        readme = (distribution.read_text("METADATA") or "").partition("\n\n")[2]
        if readme.strip():
            yield readme
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
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


def token_rows(
    tokenizer: PreTrainedTokenizerBase, n_tokens: int, context_size: int, end_token: int, seed: int = 0
) -> Dataset:
    """Rows of ``context_size`` tokens from `installed_text`, shuffled, in a column ``tokens``.

    Args:
        n_tokens: how many tokens to take.
        end_token: put after each text.
        seed: of the shuffle.

    Raises:
        ValueError: if the installed packages hold less text than that.
    """
    ids: list[int] = []
    with tqdm(total=n_tokens, desc="Reading text", unit="tok") as progress:
        for text in installed_text():
            new = tokenizer(text, add_special_tokens=False, truncation=True, max_length=MAX_TOKENS_PER_TEXT)[
                "input_ids"
            ]
            ids.extend([*new, end_token])  # type: ignore[misc]
            progress.update(min(len(ids), n_tokens) - progress.n)
            if len(ids) >= n_tokens:
                break
    if len(ids) < n_tokens:
        raise ValueError(f"the installed packages hold {len(ids)} tokens, n_tokens={n_tokens}; ask for fewer")
    rows = [ids[i : i + context_size] for i in range(0, n_tokens - context_size + 1, context_size)]
    random.Random(seed).shuffle(rows)
    return Dataset.from_dict({"tokens": rows})
