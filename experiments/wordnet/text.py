"""WordNet's glosses as text for a language model, with the synset that each token belongs to.

A gloss becomes ``entry word: gloss``, for example ``dog: a member of the genus Canis …``. The same rows serve for
training, through SAELens' ``ActivationsStore``, and for finding out what features mean.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from experiments.wordnet.database import Synset, WordNet

NO_SYNSET = -1
GLOSSES_AT_ONCE = 4096


@dataclass(frozen=True)
class GlossRows:
    """Rows of tokens, glosses one after another.

    Attributes:
        tokens: (n_rows, context_size) int64.
        synset: (n_rows, context_size) int64, number of the synset in its `WordNet`; ``NO_SYNSET`` for separators, first
            tokens and filler.
        is_entry_word: (n_rows, context_size) bool, whether the token belongs to the entry word, not to the gloss.
    """

    tokens: torch.Tensor
    synset: torch.Tensor
    is_entry_word: torch.Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> GlossRows:
        return GlossRows(self.tokens[rows], self.synset[rows], self.is_entry_word[rows])

    def dataset(self) -> Dataset:
        """The tokens as SAELens takes tokenised text: a column ``tokens``."""
        return Dataset.from_dict({"tokens": list(self.tokens.numpy())})


def entry_text(synset: Synset) -> tuple[str, str]:
    """The entry word, which is the first lemma, and the whole text of a synset."""
    entry_word = synset.lemmas[0].replace("_", " ")
    return entry_word, f"{entry_word}: {synset.gloss}"


def gloss_rows(
    wordnet: WordNet,
    tokenizer: Any,
    context_size: int,
    separator_token: int,
    n_glosses: int | None = None,
    seed: int = 0,
) -> GlossRows:
    """Tokenise the glosses and lay them out in rows.

    The glosses are shuffled: WordNet's files have related synsets side by side, and a token would see its relatives in
    its context. No gloss is divided between rows, so that every entry word has its whole gloss with it: where the next
    gloss does not fit, the row is filled up with its beginning, labelled ``NO_SYNSET``, and it starts anew in the next
    row. Only a gloss longer than a row is cut.

    Args:
        tokenizer: a fast tokenizer of Hugging Face's.
        separator_token: put after each gloss.
        n_glosses: take this many, drawn at random; None takes all.
        seed: of the shuffle.

    Raises:
        ValueError: if the tokenizer cannot tell which characters a token stands for, or a number is out of range.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}, which has no offsets; take the fast one (use_fast)"
        )
    n_glosses = len(wordnet) if n_glosses is None else n_glosses
    if not 1 <= n_glosses <= len(wordnet):
        raise ValueError(f"n_glosses={n_glosses} must be 1 … {len(wordnet)}; None takes all")
    if context_size < 2:
        raise ValueError(f"context_size={context_size} leaves no room for a gloss; take at least 2")

    order = list(range(len(wordnet)))
    random.Random(seed).shuffle(order)
    layout = _Layout(context_size, separator_token)
    for start in range(0, n_glosses, GLOSSES_AT_ONCE):
        part = order[start : min(start + GLOSSES_AT_ONCE, n_glosses)]
        entries = [entry_text(wordnet.synsets[number]) for number in part]
        encoded = tokenizer([text for _, text in entries], add_special_tokens=False, return_offsets_mapping=True)
        for number, (word, _), ids, offsets in zip(
            part, entries, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            layout.add(ids, sum(begin < len(word) for begin, _ in offsets), number)
    return layout.rows()


class _Layout:
    """Rows under construction, as flat lists."""

    def __init__(self, context_size: int, separator: int) -> None:
        self.context_size = context_size
        self.separator = separator
        self.tokens: list[int] = []
        self.synset: list[int] = []
        self.is_entry_word: list[bool] = []

    @property
    def room(self) -> int:
        """Tokens until the end of the row, which is a new one if the last one is full."""
        return self.context_size - len(self.tokens) % self.context_size

    def add(self, ids: list[int], n_entry_word: int, number: int) -> None:
        ids = ids[: self.context_size]
        if self.room < self.context_size and self.room < len(ids):
            self._append(ids[: self.room])
        self._append(ids, number, n_entry_word)
        if self.room < self.context_size:
            self._append([self.separator])

    def rows(self) -> GlossRows:
        if self.room < self.context_size:
            # A single row is its own filler, as often as it takes.
            beginning = self.tokens[: self.context_size]
            self._append((beginning * self.context_size)[: self.room])
        shape = (-1, self.context_size)
        return GlossRows(
            torch.tensor(self.tokens).view(shape),
            torch.tensor(self.synset).view(shape),
            torch.tensor(self.is_entry_word).view(shape),
        )

    def _append(self, ids: list[int], number: int = NO_SYNSET, n_entry_word: int = 0) -> None:
        self.tokens += ids
        self.synset += [number] * len(ids)
        self.is_entry_word += [i < n_entry_word for i in range(len(ids))]


def gloss_activations(
    rows: GlossRows,
    activations_of: Callable[[torch.Tensor], torch.Tensor],
    rows_at_once: int = 32,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Run the language model over the rows.

    Args:
        activations_of: (batch, context_size) tokens → (batch, context_size, d_in), as the ``get_activations`` of
            SAELens' ``ActivationsStore``.
        rows_at_once: rows per batch.

    Yields:
        Activations (n, d_in), synset of each token (n,), whether it is of the entry word (n,); the tokens that belong
        to no synset left out, the others in their order.
    """
    with tqdm(total=rows.tokens.numel(), desc="Reading glosses", unit="tok") as progress:
        for start in range(0, len(rows), rows_at_once):
            part = rows[start : start + rows_at_once]
            with torch.no_grad():
                x = activations_of(part.tokens)
            if x.ndim != 3 or x.shape[:2] != part.tokens.shape:
                raise ValueError(
                    f"activations_of gave the shape {tuple(x.shape)} for tokens of shape {tuple(part.tokens.shape)}; "
                    "it must give (batch, context_size, d_in), one activation per token (no seqpos_slice)"
                )
            kept = part.synset != NO_SYNSET
            yield x[kept.to(x.device)], part.synset[kept], part.is_entry_word[kept]
            progress.update(part.tokens.numel())
