"""The concept of each feature, against loops."""

import math
import random
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hierarchy_reference import readout_levels
from wordnet_helpers import random_wordnet, slow_ancestors, slow_information

from experiments.wordnet import concepts as wordnet_concepts
from experiments.wordnet import scores as wordnet_scores
from experiments.wordnet.concepts import feature_concepts
from experiments.wordnet.database import NO_CONCEPT, WordNet


def random_glosses(wordnet: WordNet, n_features: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One to four entry tokens and none to five gloss tokens of every synset, in random order; some features rare."""
    rng = random.Random(seed)
    order = rng.sample(range(len(wordnet)), len(wordnet))
    labels = [(number, i < n) for number in order for n in [rng.randint(1, 4)] for i in range(n + rng.randint(0, 5))]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), n_features, generator=generator)
    x[:, ::3] -= 2
    x[:, 1] = -1  # dead
    return x, torch.tensor([number for number, _ in labels]), torch.tensor([entry for _, entry in labels])


def slow_scores(acts: torch.Tensor, synset: torch.Tensor, read: torch.Tensor) -> dict[int, float]:
    """One feature's mean activation on every synset that is read."""
    return {
        number: statistics.mean(max(0.0, value) for value in acts[read & (synset == number)].tolist())
        for number in sorted(set(synset[read].tolist()))
    }


def cut(tensors: tuple[torch.Tensor, ...], seed: int) -> Iterator[tuple[Any, ...]]:
    """The same rows in batches of random sizes, some of them empty."""
    rng = random.Random(seed)
    left, n = 0, len(tensors[0])
    while left < n:
        size = rng.choice([0, 1, 2, 3, 7, 30])
        yield tuple(tensor[left : left + size] for tensor in tensors)
        left += size


def slow_match(wordnet: WordNet, scores: dict[int, float], min_size: int) -> tuple[int, float]:
    """The concept whose synsets correlate best with the scores, the more specific of equals, and the correlation."""
    found, best = NO_CONCEPT, -math.inf
    for concept in sorted(range(wordnet.n_concepts), key=lambda c: (-round(slow_information(wordnet, c), 9), c)):
        member = [float(concept in slow_ancestors(wordnet, synset)) for synset in scores]
        if min_size <= sum(member) < len(member) and len(set(scores.values())) > 1:
            correlation = statistics.correlation(member, list(scores.values()))
            if correlation > best + 1e-6:
                found, best = concept, correlation
    return found, best if best > -math.inf else math.nan


def slow_chance(wordnet: WordNet, scores: dict[int, float], concept: int) -> float:
    """exp(−n · KL(share of the scores | share of the synsets)), n the effective number of synsets scored."""
    under = [synset for synset in scores if concept in slow_ancestors(wordnet, synset)]
    p, q = len(under) / len(scores), sum(scores[synset] for synset in under) / sum(scores.values())
    n = sum(scores.values()) ** 2 / sum(score**2 for score in scores.values())
    divergence = q * math.log(q / p) + ((1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0)
    return math.exp(-n * divergence) if q > p else 1.0


@pytest.mark.parametrize("seed", range(2))
def test_concepts_equal_a_loop_over_features_and_synsets(seed, monkeypatch):
    monkeypatch.setattr(wordnet_scores, "MAX_TOKENS_AT_ONCE", 5)
    monkeypatch.setattr(wordnet_concepts, "FEATURES_AT_ONCE", 5)
    monkeypatch.setattr(wordnet_concepts, "SIGNIFICANCE", 20.0)  # else hardly a random feature has a concept
    wordnet = random_wordnet(seed)
    saes = readout_levels((4, 9))
    x, synset, wanted = random_glosses(wordnet, 13, seed)
    concepts = feature_concepts(saes, wordnet, cut((x, synset, wanted), seed), min_concept_size=3)
    n_synsets = len(synset[wanted].unique())
    for feature in range(13):
        scores = slow_scores(x[:, feature], synset, wanted)
        best, correlation = slow_match(wordnet, scores, 3)
        n_candidates = sum(
            3 <= sum(concept in slow_ancestors(wordnet, number) for number in scores) < n_synsets
            for concept in range(wordnet.n_concepts)
        )
        assert concepts.correlation[feature].item() == pytest.approx(correlation, abs=1e-5, nan_ok=True)
        chance = slow_chance(wordnet, scores, best) * n_candidates if best != NO_CONCEPT else math.inf
        assert abs(chance - 20) > 1e-3  # else rounding would decide
        assert concepts.concept[feature] == (best if chance < 20 else NO_CONCEPT)
    assert concepts.concept[1] == NO_CONCEPT
    assert (concepts.concept != NO_CONCEPT).sum() > 2
    assert concepts.information.isnan().equal(concepts.concept == NO_CONCEPT)
    assert concepts.n_tokens == int(wanted.sum())
    assert concepts.n_synsets == n_synsets
    frequency = (x[wanted] > 0).double().mean(0)
    torch.testing.assert_close(concepts.firing_frequency, frequency, atol=1e-12, rtol=0)
