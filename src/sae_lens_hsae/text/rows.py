"""Text as tokenised rows, cut as training cuts it: a file, a Hugging Face data set, or the demo's dictionary."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from tqdm.auto import tqdm

from sae_lens_hsae.text.as_trained import first_token, separator
from sae_lens_hsae.text.documents import OF_DATA_SETS, documents
from sae_lens_hsae.text.installed import HELD_OUT_OF, INSTALLED, MAX_TOKENS_PER_TEXT, installed_text

DEFAULT_CONTEXT = 128
TOKEN_COLUMNS = ("tokens", "input_ids")
"""Where SAELens looks for token ids."""


@dataclass(frozen=True)
class TextSource:
    """Where text comes from; without file and data set, what is installed, see `installed_text`.

    Args:
        file: a text file, JSON lines, a folder of such files, or the Brown Corpus, as `documents` reads them.
        dataset: a data set's name on the Hugging Face hub, a folder of its files, or one that ``save_to_disk`` wrote;
            read no further than needed.
        split: of the data set.
        column: with the text, of the data set or the JSON lines; of a data set also with token ids. One without a
            column ``text`` is read as SAELens trains on it: from ``tokens``, or else ``input_ids``.

    Raises:
        ValueError: if both a file and a data set are given, the data set is a file, or a split or column is of none.
    """

    file: str | Path | None = None
    dataset: str | Path | None = None
    split: str = "train"
    column: str = "text"

    def __post_init__(self) -> None:
        if self.file is not None and self.dataset is not None:
            raise ValueError(f"text={str(self.file)!r} and dataset={str(self.dataset)!r}: give one of them")
        if self.dataset is not None and Path(self.dataset).is_file():
            raise ValueError(f"dataset={str(self.dataset)!r} is a file; {_in_place_of_file(self.dataset)}")
        if self.split != "train" and self.dataset is None:
            raise ValueError(f"split={self.split!r} names a split of a data set, but none is given; add dataset")
        if self.column != "text" and self.is_installed:
            raise ValueError(f"column={self.column!r} names a column, but no file or data set is given")

    def __str__(self) -> str:
        if self.is_installed:
            return INSTALLED
        return f"dataset={str(self.dataset)!r}" if self.file is None else f"text={str(self.file)!r}"

    @property
    def is_installed(self) -> bool:
        """Whether it is `installed_text`."""
        return self.file is None and self.dataset is None

    def said(self, metadata: Any) -> str:
        """One line: what is read, and whether an SAE with these metadata was trained on it."""
        if self.is_installed:
            return f"Text: {INSTALLED}, the 1 in {HELD_OUT_OF} that hsae demo does not train on"
        read, trained_on = str(self.dataset if self.file is None else self.file), str(metadata.dataset_path or "")
        same = bool(trained_on) and Path(read).resolve() == Path(trained_on).resolve()
        return f"Text: {read}" + ("; the SAE was trained on it" if same else "")


def text_rows(
    source: TextSource,
    metadata: Any,
    tokenizer: Any,
    n_tokens: int,
    held_out: bool | None = True,
    limit: int | None = None,
) -> Dataset:
    """Rows as the SAE was trained on, in a column ``tokens``: as many as hold ``n_tokens``, cut by SAELens.

    The ``metadata`` say how training cut texts; where they name no ``context_size``, ``limit`` is what the model takes.
    First tokens are not counted. ``held_out`` is as of `installed_text`. Rows of token ids are cut to the context, as
    in training. A ValueError if the data set lacks the split or the column, or the text, or a row of token ids, is too
    short.

    It warns if a context holds no more than its first token, or the tokenizer knows little of the text.
    """
    first = first_token(metadata, tokenizer)
    length = metadata.context_size or min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT)
    of_text = length - (first is not None)
    if not of_text:
        warnings.warn(
            f"context_size={length} and prepend_bos=True: every context is the first token alone, in training and here",
            stacklevel=2,
        )
    n_rows = math.ceil(n_tokens / max(1, of_text))
    data = _data_set(source)
    column = _column_of_tokens(source, data)
    if column is not None:
        return _cut(source, data, column, length, n_rows, tokenizer)
    counted = _Counted(tokenizer, _texts(source, data, held_out), truncated=source.is_installed)
    cut = concat_and_batch_sequences(
        iter(counted),
        length,
        begin_batch_token_id=first,
        sequence_separator_token_id=separator(metadata, tokenizer),
        disable_concat_sequences=bool(metadata.disable_concat_sequences),
    )
    # SAELens' generator has no end where a context holds but its first token.
    with tqdm(total=n_rows * length, desc="Reading text", unit="tok", disable=not source.is_installed) as progress:
        rows = []
        for row in islice(cut, n_rows):
            rows.append(row.tolist())
            progress.update(length)
    if not rows:
        raise ValueError(f"{source} holds {_lacking(counted.n_tokens, metadata, length)}; give more")
    if source.is_installed:
        if len(rows) < n_rows:
            raise ValueError(f"{source} holds {counted.n_tokens} tokens, n_tokens={n_tokens}; ask for fewer")
        random.Random(0).shuffle(rows)
    if counted.n_unknown > counted.n_tokens / 2:
        warnings.warn(
            f"{source}: {counted.n_unknown / counted.n_tokens:.0%} of its tokens are {tokenizer.unk_token}, which "
            "stands for what the model's tokenizer does not know, such as another script; give a text that it knows",
            stacklevel=2,
        )
    return Dataset.from_dict({"tokens": rows})


def training_rows(cfg: LanguageModelSAERunnerConfig[Any], tokenizer: Any, n_tokens: int) -> Dataset:
    """Rows of the installed text to train on, cut as ``cfg`` says, without the texts held out; see `text_rows`."""
    names = ("context_size", "prepend_bos", "sequence_separator_token", "disable_concat_sequences")
    metadata = SAEMetadata(**{name: getattr(cfg, name) for name in names})
    return text_rows(TextSource(), metadata, tokenizer, n_tokens, held_out=False)


def rows_on_disk(cfg: LanguageModelSAERunnerConfig[Any]) -> Any:
    """The rows of ``dataset_path`` where that is a folder that SAELens cannot read; None elsewhere.

    It asks the hub for the tokenizer of tokenised rows, by the folder's path, and cannot load what ``save_to_disk``
    wrote.
    """
    folder = Path(cfg.dataset_path)
    if folder.is_file():
        raise ValueError(f"dataset_path={cfg.dataset_path!r} is a file; {_in_place_of_file(folder)}")
    if not cfg.dataset_path or not folder.is_dir() or not (_is_saved(folder) or cfg.is_dataset_tokenized):
        return None
    name = cfg.dataset_path
    data: Any = load_from_disk(name) if _is_saved(folder) else load_dataset(name, streaming=cfg.streaming)
    if not isinstance(data, dict):
        return data
    if "train" not in data:
        raise ValueError(f"dataset_path={name!r} holds {', '.join(map(str, data))}, and no split 'train'")
    return data["train"]


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _in_place_of_file(path: str | Path) -> str:
    """What to give where a data set is a file, which would be looked for on the hub."""
    as_text = "" if Path(path).suffix.lower() in OF_DATA_SETS else f"give it as text={str(path)!r}, or "
    return f"{as_text}give a folder that holds it alone"


class _Counted:
    """Token ids of each text, how many there were so far, and how many of them stood for what is not known."""

    def __init__(self, tokenizer: Any, texts: Iterator[str], truncated: bool) -> None:
        self.n_tokens = self.n_unknown = 0
        self._tokenizer, self._texts = tokenizer, texts
        self._options = {"truncation": True, "max_length": MAX_TOKENS_PER_TEXT} if truncated else {}

    def __iter__(self) -> Iterator[torch.Tensor]:
        for text in self._texts:
            ids = self._tokenizer(text, add_special_tokens=False, **self._options)["input_ids"]
            self.n_tokens += len(ids)
            self.n_unknown += ids.count(self._tokenizer.unk_token_id)
            if ids:
                yield torch.tensor(ids)


def _lacking(n_tokens: int, metadata: Any, length: int) -> str:
    if metadata.disable_concat_sequences:
        return f"no text that fills a context of {length} by itself (trained with disable_concat_sequences)"
    return f"too little: {n_tokens} of {length} tokens that fill a context"


def _data_set(source: TextSource) -> Any:
    """The split of the source's data set; None where it is none."""
    if source.dataset is None:
        return None
    name, split = str(source.dataset), source.split
    if not _is_saved(Path(name)):
        return load_dataset(name, split=split, streaming=True)
    data: Any = load_from_disk(name)
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"split={split!r} is not in dataset={name!r}, which has {', '.join(map(str, data))}")
        data = data[split]
    return data.with_format(None)  # SAELens sets one for rows of token ids, and it is saved with them


def _column_of_tokens(source: TextSource, data: Any) -> str | None:
    """The column of a data set that holds token ids; None where text is to be read."""
    row = next(iter(data), {}) if data is not None else {}
    default = source.column == TextSource.column and source.column not in row
    column = next((name for name in TOKEN_COLUMNS if name in row), None) if default else source.column
    ids = row.get(column)
    return column if isinstance(ids, list) and ids and all(type(id_) is int for id_ in ids) else None


def _cut(source: TextSource, data: Any, column: str, length: int, n_rows: int, tokenizer: Any) -> Dataset:
    """The beginnings of rows of token ids, in a column ``tokens``."""
    rows = [row[column][:length] for row in islice(data, n_rows)]
    for i, row in enumerate(rows):
        if len(row) < length:
            raise ValueError(
                f"{source}: column={column!r} has {len(row)} tokens in row {i}, fewer than context_size={length}; give "
                "rows that are at least as long, or a data set with text"
            )
        if not 0 <= min(row) <= max(row) < len(tokenizer):
            raise ValueError(
                f"{source}: column={column!r} has the token {max(row)} in row {i}, and the model's tokenizer has "
                f"{len(tokenizer)}; give rows of this tokenizer, or a data set with text"
            )
    return Dataset.from_dict({"tokens": rows})


def _texts(source: TextSource, data: Any, held_out: bool | None) -> Iterator[str]:
    if source.file is not None:
        yield from documents(source.file, source.column)
        return
    if source.is_installed:
        yield from installed_text(held_out)
        return
    for row in data:
        text = row.get(source.column, ...)
        if not isinstance(text, str | None):
            raise ValueError(
                f"column={source.column!r} holds neither text nor token ids in dataset={str(source.dataset)!r}, which "
                f"has the columns {', '.join(row)}"
            )
        if text is not None:
            yield text
