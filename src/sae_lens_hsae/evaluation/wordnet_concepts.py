"""The concept that a feature covers, derived from the synsets it fires on; no language model judges.

Of all synsets those on whose entry word (or gloss) a feature fires most are kept, in one pass. The feature's concept is
the lowest common hypernym of most of them: the most specific one over at least a stated share (``coverage``) of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, check_same_input, level_saes
from sae_lens_hsae.evaluation.wordnet import NO_CONCEPT, WordNet
from sae_lens_hsae.levels import Levels

MAX_TOKENS_AT_ONCE = 1024
# Bounds the (tokens, features) tensors of one level: 128 MiB in float32, however wide the level.
MAX_ELEMENTS_AT_ONCE = 2**25


@dataclass(frozen=True)
class FeatureConcepts:
    """What the features of a stack of levels mean, in WordNet's terms. Features are numbered flat, coarse to fine.

    Attributes:
        wordnet: whose concepts they are.
        levels: those that the features belong to.
        synsets: (n_features, k) int64, the synsets kept for each feature, strongest first; ``NO_CONCEPT`` where it
            fires on fewer than k.
        concept: (n_features,) int64, the concept over most of those synsets; ``NO_CONCEPT`` for features that fire on
            too few.
        information: (n_features,) float64, the concept's information content in nats; NaN for no concept.
        firing_frequency: (n_features,) float64, the share of the tokens read on which each feature is active.
        n_tokens: tokens read: those of the entry words, or those of the glosses.
        n_synsets: synsets read.
    """

    wordnet: WordNet = field(repr=False)
    levels: Levels
    synsets: torch.Tensor = field(repr=False)
    concept: torch.Tensor = field(repr=False)
    information: torch.Tensor = field(repr=False)
    firing_frequency: torch.Tensor = field(repr=False)
    n_tokens: int
    n_synsets: int

    def name(self, feature: int) -> str:
        """Name of the feature's concept, for example ``animal.n.01``."""
        return self.wordnet.name(int(self.concept[feature]))

    def with_coverage(self, coverage: float, min_synsets: int = 5) -> FeatureConcepts:
        """Concepts from the same synsets by another share or minimum; see `feature_concepts`."""
        return _concepts_of(
            self.wordnet, self.levels, self.synsets, self.firing_frequency, self.n_tokens, self.n_synsets,
            coverage=coverage, min_synsets=min_synsets,
        )  # fmt: skip


@torch.no_grad()
def feature_concepts(
    levels: Sequence[LevelSAE] | SAEStack,
    wordnet: WordNet,
    glosses: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    *,
    read: Literal["entry_word", "gloss"] = "entry_word",
    score: Literal["mean", "peak"] = "mean",
    choice: Literal["strongest", "proportional"] = "strongest",
    k: int = 20,
    min_synsets: int = 5,
    coverage: float = 0.75,
    seed: int = 0,
) -> FeatureConcepts:
    """Derive every feature's concept from a stream of activations on glosses, in one pass and constant memory.

    In a causal language model the entry word has not seen its gloss, and all senses of a word look alike there: read
    the gloss.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (`HierarchicalSAE`).
        glosses: batches of activations (n, d_in), synset of each token (n,), whether it is of the entry word (n,), as
            `gloss_activations` yields them; the tokens of one synset one after another, also across batches.
        read: which tokens of a synset are read.
        score: a feature's score on a synset is its mean or its highest activation over those tokens.
        choice: keep the synsets of the highest scores, or draw them without replacement in proportion to the scores,
            which represents all that the feature fires on and not only its peak.
        k: synsets kept per feature.
        min_synsets: a feature that fires on fewer has no concept.
        coverage: share of the kept synsets that the concept must be over; the others are taken for outliers.
        seed: of the draw, which is the same for the same batches and device.

    Raises:
        ValueError: if an argument is out of range, the stream has no token to read, its synsets are not in ``wordnet``
            or come twice, or a batch does not fit the SAEs.
        TypeError: if ``levels`` is a single SAE that has no ``level_sae``.
    """
    if not 1 <= min_synsets <= k:
        raise ValueError(f"min_synsets={min_synsets} must be 1 … k={k}")
    for name, value, allowed in (
        ("read", read, ("entry_word", "gloss")),
        ("score", score, ("mean", "peak")),
        ("choice", choice, ("strongest", "proportional")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown; take {allowed[0]!r} or {allowed[1]!r}")
    saes = level_saes(levels)
    check_same_input(saes)
    numbering = Levels(tuple(sae.cfg.d_sae for sae in saes))
    device = saes[0].device
    tallies = [_StrongestSynsets(width, k, score, choice, seed, device) for width in numbering.widths]
    seen = torch.zeros(len(wordnet), dtype=torch.bool)
    n_tokens = 0
    tokens_at_once = max(1, min(MAX_TOKENS_AT_ONCE, MAX_ELEMENTS_AT_ONCE // numbering.widths[-1]))
    for x, synset in _whole_synsets(_tokens_read(glosses, saes, len(wordnet), read), tokens_at_once):
        numbers, n_tokens_of = torch.unique_consecutive(synset, return_counts=True)
        if seen[numbers].any() or len(numbers.unique()) < len(numbers):
            raise ValueError("glosses: the tokens of a synset are not one after another; give every synset once")
        seen[numbers] = True
        n_tokens += len(synset)
        x, numbers, n_tokens_of = x.to(device), numbers.to(device), n_tokens_of.to(device)
        for sae, tally in zip(saes, tallies, strict=True):
            tally.add(sae.encode(x), numbers, n_tokens_of)
    if not n_tokens:
        raise ValueError(
            f"glosses held no token with read={read!r}; pass (activations, synsets, is_entry_word) batches"
        )
    return _concepts_of(
        wordnet,
        numbering,
        torch.cat([tally.result() for tally in tallies]),
        torch.cat([tally.fires.cpu() for tally in tallies]).double() / n_tokens,
        n_tokens,
        int(seen.sum()),
        coverage=coverage,
        min_synsets=min_synsets,
    )


def _concepts_of(
    wordnet: WordNet,
    levels: Levels,
    synsets: torch.Tensor,
    firing_frequency: torch.Tensor,
    n_tokens: int,
    n_synsets: int,
    *,
    coverage: float,
    min_synsets: int,
) -> FeatureConcepts:
    concept = wordnet.common_hypernyms(synsets, coverage)
    concept[(synsets != NO_CONCEPT).sum(1) < min_synsets] = NO_CONCEPT
    information = torch.where(concept == NO_CONCEPT, math.nan, wordnet.information[concept])
    return FeatureConcepts(wordnet, levels, synsets, concept, information, firing_frequency, n_tokens, n_synsets)


class _StrongestSynsets:
    """The k synsets of each feature of one level with the highest keys so far.

    The key is the score or, to draw in proportion to it, log(u) / score with u uniform in (0, 1): the k highest such
    keys are a weighted sample without replacement (Efraimidis & Spirakis 2006).
    """

    def __init__(self, width: int, k: int, score: str, choice: str, seed: int, device: torch.device) -> None:
        self.k, self.score = k, score
        self.keys = torch.full((k, width), -math.inf, device=device)
        self.synsets = torch.full((k, width), NO_CONCEPT, device=device)
        self.fires = torch.zeros(width, dtype=torch.int64, device=device)
        self.generator = torch.Generator(device).manual_seed(seed) if choice == "proportional" else None

    def add(self, acts: torch.Tensor, numbers: torch.Tensor, n_tokens_of: torch.Tensor) -> None:
        """``acts`` (tokens, width) of whole synsets, ``numbers`` and ``n_tokens_of`` (synsets,) of each."""
        acts = acts.float()
        self.fires += (acts > 0).sum(0)
        row = torch.arange(len(numbers), device=acts.device).repeat_interleave(n_tokens_of)
        scores = acts.new_zeros(len(numbers), acts.shape[1])
        if self.score == "mean":
            scores = scores.index_add_(0, row, acts) / n_tokens_of[:, None]
        else:
            scores = scores.scatter_reduce_(0, row[:, None].expand_as(acts), acts, "amax")
        keys = scores
        if self.generator is not None:
            drawn = torch.rand(scores.shape, generator=self.generator, device=scores.device)
            keys = drawn.log() / scores
        keys = torch.where(scores > 0, keys, -math.inf)
        # Later in the stream few features find anything stronger than what they have.
        features = (keys.amax(0) > self.keys[-1]).nonzero().flatten()
        together = torch.cat([self.keys[:, features], keys[:, features]])
        self.keys[:, features], places = together.topk(self.k, dim=0)
        candidates = torch.cat([self.synsets[:, features], numbers[:, None].expand(-1, len(features))])
        chosen = candidates.gather(0, places)
        self.synsets[:, features] = torch.where(self.keys[:, features] == -math.inf, NO_CONCEPT, chosen)

    def result(self) -> torch.Tensor:
        """(width, k) synsets, strongest first."""
        return self.synsets.T.cpu().contiguous()


def _tokens_read(
    glosses: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], saes: list[LevelSAE], n_synsets: int, read: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The checked batches, reduced to the tokens that are read."""
    d_in = saes[0].cfg.d_in
    for i, (x, synset, is_entry_word) in enumerate(glosses):
        if x.ndim != 2 or x.shape[1] != d_in or synset.shape != x.shape[:1] or is_entry_word.shape != x.shape[:1]:
            raise ValueError(
                f"glosses: batch {i} has the shapes {tuple(x.shape)}, {tuple(synset.shape)} and "
                f"{tuple(is_entry_word.shape)}, expected (n, {d_in}), (n,) and (n,) for levels with d_in={d_in}"
            )
        synset = synset.cpu()
        if len(synset) and not 0 <= int(synset.min()) <= int(synset.max()) < n_synsets:
            raise ValueError(
                f"glosses: batch {i} names a synset that is none of 0 … {n_synsets - 1}; leave out its token"
            )
        wanted = is_entry_word.cpu() == (read == "entry_word")
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
        goes_on = bool(held_synset) and bool(held_synset[-1][-1] == synset[0])
        if last == 0 and goes_on:
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
