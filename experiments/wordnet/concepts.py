"""The concept that a feature covers, derived from the synsets it fires on; no language model judges.

Of all concepts with enough synsets it is the one whose synsets (those under it against all others) correlate best with
the feature's scores. This weighs all that a feature fires on, so a broad feature gets a broad concept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from experiments.wordnet.database import NO_CONCEPT, WordNet
from experiments.wordnet.scores import Glosses, SynsetScores
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, level_saes
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.stack_checks import check_same_input

SIGNIFICANCE = 0.01
TIE = 1e-6
FEATURES_AT_ONCE = 4096


@dataclass(frozen=True)
class FeatureConcepts:
    """What the features of a stack of levels mean, in WordNet's terms. Features are numbered flat, coarse to fine.

    Attributes:
        wordnet: whose concepts they are.
        levels: those that the features belong to.
        concept: (n_features,) int64, ``NO_CONCEPT`` for features without one.
        information: (n_features,) float64, the concept's information content in nats; NaN for no concept.
        correlation: (n_features,) float64, of the best match with the feature; NaN where none is defined.
        firing_frequency: (n_features,) float64, the share of the tokens read on which each feature is active.
        n_tokens: tokens read: those of the entry words.
        n_synsets: synsets read.
    """

    wordnet: WordNet = field(repr=False)
    levels: Levels
    concept: torch.Tensor = field(repr=False)
    information: torch.Tensor = field(repr=False)
    correlation: torch.Tensor = field(repr=False)
    firing_frequency: torch.Tensor = field(repr=False)
    n_tokens: int
    n_synsets: int

    def name(self, feature: int) -> str:
        """Name of the feature's concept, for example ``animal.n.01``."""
        return self.wordnet.name(int(self.concept[feature]))

    def with_concept(self, concept: torch.Tensor) -> FeatureConcepts:
        """The same with other concepts, (n_features,) int64."""
        information = torch.where(concept == NO_CONCEPT, math.nan, self.wordnet.information[concept])
        return replace(self, concept=concept, information=information)


@torch.no_grad()
def feature_concepts(
    levels: Sequence[LevelSAE] | SAEStack,
    wordnet: WordNet,
    glosses: Glosses,
    *,
    min_concept_size: int = 30,
) -> FeatureConcepts:
    """Derive every feature's concept from a stream of activations on glosses, in one pass.

    A feature whose best match could be chance (probability above 0.01, over all concepts tried) has no concept. Memory
    is bounded by a table of concepts × features: 1,721 concepts of WordNet have 30 synsets, 0.2 GB for 30,720 features.

    Read are the entry words alone, which in a model that reads in both directions have seen their gloss.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (`HierarchicalSAE`).
        glosses: as `gloss_activations` yields them; the tokens of one synset one after another, also across batches.
        min_concept_size: synsets read that a concept needs under it to be matched.

    Raises:
        ValueError: if an argument is out of range, the stream has no token to read, its synsets are not in ``wordnet``
            or come twice, or a batch does not fit the SAEs.
        TypeError: if ``levels`` is a single SAE that has no ``level_sae``.
    """
    if min_concept_size < 1:
        raise ValueError(f"min_concept_size={min_concept_size} must be at least 1")
    saes = level_saes(levels)
    check_same_input(saes)
    numbering = Levels(tuple(sae.cfg.d_sae for sae in saes))
    scores = SynsetScores(saes, glosses, len(wordnet))
    candidates = _Candidates(wordnet, min_concept_size)
    matches = [_BestMatch(candidates, width, sae.device) for width, sae in zip(numbering.widths, saes, strict=True)]
    for synsets, of_levels in scores:
        membership = candidates.membership(synsets)
        for of_level, match in zip(of_levels, matches, strict=True):
            match.add(of_level, *membership)
    found = [match.result(scores.seen) for match in matches]
    concept = torch.cat([concept for concept, _ in found])
    fires = torch.cat([fires.cpu() for fires in scores.fires])
    concepts = FeatureConcepts(
        wordnet=wordnet,
        levels=numbering,
        concept=concept,
        information=torch.empty(0),
        correlation=torch.cat([correlation for _, correlation in found]),
        firing_frequency=fires.double() / scores.n_tokens,
        n_tokens=scores.n_tokens,
        n_synsets=int(scores.seen.sum()),
    )
    return concepts.with_concept(concept)


class _Candidates:
    """The concepts that are matched: those with enough synsets under them."""

    def __init__(self, wordnet: WordNet, min_size: int) -> None:
        self.wordnet, self.min_size = wordnet, min_size
        # Specific ones last, and of equals the lowest number.
        order = sorted(
            (wordnet.n_under >= min_size).nonzero().flatten().tolist(),
            key=lambda concept: (wordnet.information[concept].item(), -concept),
        )
        self.concepts = torch.tensor(order, dtype=torch.int64)
        self._place = torch.full((wordnet.n_concepts,), -1)
        self._place[self.concepts] = torch.arange(len(order))

    def __len__(self) -> int:
        return len(self.concepts)

    def membership(self, synsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) candidates over any of the synsets, and (n, n_synsets) float32, 1 where one is over the synset."""
        row, above = self.wordnet.paths_up(synsets)
        place = self._place[above]
        row, place = row[place >= 0], place[place >= 0]
        present, place = place.unique(return_inverse=True)
        table = torch.zeros(len(present), len(synsets))
        table[place, row] = 1.0
        return present, table

    def sizes(self, seen: torch.Tensor) -> torch.Tensor:
        """(n_candidates,) float64: how many of the synsets seen are under each."""
        _, above = self.wordnet.paths_up(seen.nonzero().flatten())
        place = self._place[above]
        return torch.bincount(place[place >= 0], minlength=len(self)).double()


class _BestMatch:
    """Sums for the correlation of every feature of a level with every candidate's membership."""

    def __init__(self, candidates: _Candidates, width: int, device: torch.device) -> None:
        self.candidates = candidates
        self.per_concept = torch.zeros(len(candidates), width, device=device)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.total_of_squares = torch.zeros(width, dtype=torch.float64)

    def add(self, scores: torch.Tensor, present: torch.Tensor, membership: torch.Tensor) -> None:
        self.per_concept.index_add_(0, present.to(scores.device), membership.to(scores) @ scores)
        self.total += scores.sum(0).double().cpu()
        self.total_of_squares += scores.square().sum(0).double().cpu()

    def result(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(width,) best candidates, ``NO_CONCEPT`` where they could be chance, and (width,) float64 correlations."""
        parts = [self._of_features(part, seen) for part in torch.arange(len(self.total)).split(FEATURES_AT_ONCE)]
        return torch.cat([concept for concept, _ in parts]), torch.cat([correlation for _, correlation in parts])

    def _of_features(self, features: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = int(seen.sum())
        sizes = self.candidates.sizes(seen)
        usable = (sizes >= self.candidates.min_size) & (sizes < n)
        if not usable.any():
            nothing = torch.full((len(features),), NO_CONCEPT)
            return nothing, torch.full((len(features),), math.nan, dtype=torch.float64)
        share = (sizes[usable] / n)[:, None]
        mean = self.total[features] / n
        variance = self.total_of_squares[features] / n - mean.square()
        covariance = self.per_concept[:, features].cpu()[usable].double() / n - share * mean
        correlation = covariance / (share * (1 - share) * variance).sqrt()
        # The feature is dead or the same everywhere, and what variance there is comes from rounding.
        correlation[:, variance <= TIE * mean.square()] = math.nan
        best = correlation.amax(0)
        # The last of those that tie: candidates with the same synsets read differ in which is the more specific.
        ties = correlation >= best - TIE
        place = (ties * torch.arange(1, len(correlation) + 1)[:, None]).argmax(0)
        concept = self.candidates.concepts[usable][place]
        sums = self.per_concept[:, features].cpu()[usable].double().gather(0, place[None])[0]
        bound = _log_chance(sums, self.total[features], self.total_of_squares[features], share[place, 0])
        return torch.where(bound <= math.log(SIGNIFICANCE / int(usable.sum())), concept, NO_CONCEPT), best


def _log_chance(
    sums: torch.Tensor, total: torch.Tensor, total_of_squares: torch.Tensor, share: torch.Tensor
) -> torch.Tensor:
    """Upper bound of the log probability that a concept over ``share`` of the synsets gets ``sums`` of all scores.

    Chernoff's bound for drawing the synsets at random, the number of draws being the effective sample size
    (Σ score)² / Σ score²; for scores of 0 and 1 that is how many fire. A normal approximation of the correlation would
    find concepts by the thousand in random features that fire seldom.
    """
    found = (sums / total).clamp(0, 1)
    divergence = torch.xlogy(found, found / share) + torch.xlogy(1 - found, (1 - found) / (1 - share))
    return torch.where(found > share, -(total.square() / total_of_squares) * divergence, 0.0)
