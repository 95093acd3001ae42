"""How strongly every feature fires on every synset, streamed from activations on glosses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from sae_lens_hsae.evaluation.stacks import LevelSAE

Glosses = Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Batches of activations (n, d_in), synset of each token (n,), and whether it is of the entry word (n,)."""

MAX_TOKENS_AT_ONCE = 1024
# Bounds the (tokens, features) tensors of one level: 128 MiB in float32, however wide the level.
MAX_ELEMENTS_AT_ONCE = 2**25


@dataclass
class SynsetScores:
    """Scores of all features, a part of the synsets at a time; the counts are complete when the iterator ends.

    A feature's score on a synset is its mean activation over the tokens of the entry word.

    Args:
        saes: one SAE per level.
        glosses: the tokens of one synset one after another, also across batches.
        n_synsets: synsets of the WordNet.

    Attributes:
        n_tokens: tokens read.
        seen: (n_synsets,) bool, synsets read.
        fires: per level (width,) int64, tokens on which each feature is active.
    """

    saes: Sequence[LevelSAE]
    glosses: Glosses
    n_synsets: int
    n_tokens: int = 0
    seen: torch.Tensor = field(init=False)
    fires: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.seen = torch.zeros(self.n_synsets, dtype=torch.bool)
        self.fires = [torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=sae.device) for sae in self.saes]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Synsets (n,) on the CPU, and for each level their scores (n, width).

        Raises:
            ValueError: if a batch does not fit the SAEs or the WordNet, a synset comes twice, or no token is read.
        """
        widest = max(sae.cfg.d_sae for sae in self.saes)
        tokens_at_once = max(1, min(MAX_TOKENS_AT_ONCE, MAX_ELEMENTS_AT_ONCE // widest))
        for x, synset in _whole_synsets(self._tokens_read(), tokens_at_once):
            numbers, n_tokens_of = torch.unique_consecutive(synset, return_counts=True)
            if self.seen[numbers].any() or len(numbers.unique()) < len(numbers):
                raise ValueError("glosses: the tokens of a synset are not one after another; give every synset once")
            self.seen[numbers] = True
            self.n_tokens += len(synset)
            yield numbers, [self._scores(x, level, n_tokens_of) for level in range(len(self.saes))]
        if not self.n_tokens:
            raise ValueError("glosses held no entry word; pass (activations, synsets, is_entry_word) batches")

    def _scores(self, x: torch.Tensor, level: int, n_tokens_of: torch.Tensor) -> torch.Tensor:
        sae = self.saes[level]
        acts = sae.encode(x.to(sae.device)).float().abs()  # some architectures fire with either sign
        self.fires[level] += (acts > 0).sum(0)
        n_tokens_of = n_tokens_of.to(acts.device)
        row = torch.arange(len(n_tokens_of), device=acts.device).repeat_interleave(n_tokens_of)
        zeros = acts.new_zeros(len(n_tokens_of), acts.shape[1])
        return zeros.index_add_(0, row, acts) / n_tokens_of[:, None]

    def _tokens_read(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The checked batches, reduced to the tokens that are read."""
        d_in = self.saes[0].cfg.d_in
        for i, (x, synset, is_entry_word) in enumerate(self.glosses):
            if x.ndim != 2 or x.shape[1] != d_in or synset.shape != x.shape[:1] or is_entry_word.shape != x.shape[:1]:
                raise ValueError(
                    f"glosses: batch {i} has the shapes {tuple(x.shape)}, {tuple(synset.shape)} and "
                    f"{tuple(is_entry_word.shape)}, expected (n, {d_in}), (n,) and (n,) for levels with d_in={d_in}"
                )
            synset = synset.cpu()
            if len(synset) and not 0 <= int(synset.min()) <= int(synset.max()) < self.n_synsets:
                raise ValueError(
                    f"glosses: batch {i} names a synset that is none of 0 … {self.n_synsets - 1}; leave out its token"
                )
            wanted = is_entry_word.cpu()
            x, synset = x[wanted.to(x.device)], synset[wanted]
            if not x.isfinite().all():
                raise ValueError(f"glosses: batch {i} holds NaN or infinity; leave out those tokens")
            yield x, synset


def _whole_synsets(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], tokens_at_once: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same tokens in pieces of at most ``tokens_at_once``, or of one longer synset; no piece divides a synset."""
    held_x, held_synset = [], []
    for x, synset in batches:
        if not len(synset):
            continue
        # The last synset may go on in the next batch.
        last = len(synset) - int(torch.unique_consecutive(synset, return_counts=True)[1][-1])
        if last == 0 and held_synset and held_synset[-1][-1] == synset[0]:
            held_x.append(x)
            held_synset.append(synset)
            continue
        yield from _pieces(torch.cat([*held_x, x[:last]]), torch.cat([*held_synset, synset[:last]]), tokens_at_once)
        held_x, held_synset = [x[last:]], [synset[last:]]
    if held_synset:
        yield from _pieces(torch.cat(held_x), torch.cat(held_synset), tokens_at_once)


def _pieces(x: torch.Tensor, synset: torch.Tensor, tokens_at_once: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    ends = torch.unique_consecutive(synset, return_counts=True)[1].cumsum(0)
    start = 0
    while start < len(synset):
        within = ends[(ends > start) & (ends <= start + tokens_at_once)]
        stop = int(within[-1]) if len(within) else int(ends[ends > start][0])
        yield x[start:stop], synset[start:stop]
        start = stop
