"""Pairs judged by WordNet, and the intervals of their rates."""

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from wordnet_helpers import numbers, random_wordnet, slow_ancestors, slow_common_hypernym, slow_information

from experiments.wordnet.concepts import FeatureConcepts
from experiments.wordnet.database import WordNet
from experiments.wordnet.judge import MEASURES, judge_forest
from experiments.wordnet.report import PairRates
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.levels import Levels


def given_concepts(
    wordnet: WordNet, widths: list[int], names: str, frequency: torch.Tensor | None = None
) -> FeatureConcepts:
    concept = numbers(wordnet, names)
    frequency = torch.full((len(concept),), 0.1).double() if frequency is None else frequency
    empty, levels = torch.empty(0), Levels(tuple(widths))
    return FeatureConcepts(wordnet, levels, empty, empty, empty, frequency, 100, 16).with_concept(concept)


def values(rates: PairRates) -> dict[str, float]:
    return {name: getattr(rates, name).value for name in MEASURES}


@pytest.fixture
def judged(tiny) -> tuple[FeatureConcepts, FeatureForest]:
    """Three levels: animal, (anything) and food on top."""
    names = "animal (anything) food - " + "dog animal bread run.v.01 entity " + "rex dog cat dog.n.02 food animal"
    concepts = given_concepts(tiny, [4, 5, 6], names)
    parents = [-1] * 4 + [0, 0, 2, 1, 3] + [4, 4, 4, 6, 6, -1]
    return concepts, FeatureForest(parents, [4, 5, 6])


def test_rates_of_a_forest_by_hand(tiny, judged):
    result = judge_forest(*judged)
    coarse, fine = result.boundaries
    info = {tiny.name(i): slow_information(tiny, i) for i in range(tiny.n_concepts)}

    # animal←dog under, animal←animal equal, food←bread under, (anything)←run under; (no concept)←entity left out.
    assert (coarse.parent_level, coarse.n_pairs, coarse.n_pairs_left_out) == (0, 4, 1)
    shared = (2 * info["animal.n.01"] + info["food.n.01"]) / 4
    expected = {"under": 3 / 4, "equal": 1 / 4, "neither": 0, "subsumed": 1, "more_specific": 1}
    assert values(coarse.forest) == pytest.approx(expected | {"shared_information": shared})

    # dog←rex under, dog←dog equal, dog←cat neither but more special, bread←dog.n.02 and bread←food neither.
    assert (fine.parent_level, fine.n_pairs, fine.n_pairs_left_out) == (1, 5, 0)
    shared = (2 * info["dog.n.01"] + info["pet.n.01"] + 2 * info["food.n.01"]) / 5
    expected = {"under": 1 / 5, "equal": 1 / 5, "neither": 3 / 5, "subsumed": 2 / 5, "more_specific": 2 / 4}
    assert values(fine.forest) == pytest.approx(expected | {"shared_information": shared})

    assert (result.overall.parent_level, result.overall.n_pairs, result.overall.n_pairs_left_out) == (None, 9, 1)
    assert values(result.overall.forest)["under"] == pytest.approx(4 / 9)


def test_best_and_worst_trees(tiny):
    """Three roots with four children each: all right, all right but saying nothing, all wrong."""
    names = "(anything) bread animal " + "run.v.01 " * 4 + "cat dog rex run.v.01 " + "dog cat rex animal"
    forest = FeatureForest([-1] * 3 + [0] * 4 + [1] * 4 + [2] * 4, [3, 12])
    result = judge_forest(given_concepts(tiny, [3, 12], names), forest, n_trees=2)
    assert [tree.root for tree in result.best_trees] == [2, 0]
    assert [tree.root for tree in result.worst_trees] == [1, 0]
    assert result.best_trees[0].score == pytest.approx(math.log(16 / 6))
    assert result.best_trees[1].score == 0
    assert result.worst_trees[0].score < 0
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["best_trees"][0]["children"] == ["dog.n.01", "cat.n.01", "rex.n.01", "animal.n.01"]
    assert record["overall"]["n_pairs"] == 12


def exact_control(concepts: FeatureConcepts, forest: FeatureForest, bin_of: Callable[[int], Any]) -> dict[str, float]:
    """Each child with each of its bin's pairs' parents but its own, averaged; by a loop over pairs of pairs."""
    wordnet, totals = concepts.wordnet, []
    edges = forest.edges().tolist()
    for own, child in edges:
        others = [parent for parent, _ in edges if bin_of(parent) == bin_of(own) and parent != own]
        rows = []
        for parent in others:
            p, c = int(concepts.concept[parent]), int(concepts.concept[child])
            under, equal = p in slow_ancestors(wordnet, c) and p != c, p == c
            shared = slow_information(wordnet, slow_common_hypernym(wordnet, [p, c]))
            special = slow_information(wordnet, c) > slow_information(wordnet, p) + 1e-9
            special = math.nan if equal else special
            rows.append([under, equal, not (under or equal), under or equal, special, shared])
        if rows:
            totals.append([known_mean(column) for column in zip(*rows, strict=True)])
    return dict(zip(MEASURES, (known_mean(column) for column in zip(*totals, strict=True)), strict=True))


def known_mean(numbers: Sequence[float]) -> float:
    known = [number for number in numbers if not math.isnan(number)]
    return sum(known) / len(known) if known else math.nan


@pytest.fixture
def random_forest() -> tuple[FeatureConcepts, FeatureForest]:
    wordnet = random_wordnet(5)
    rng = random.Random(5)
    names = " ".join(wordnet.name(rng.randrange(wordnet.n_concepts)) for _ in range(30))
    # Parent 0 has many children, so that permutations often leave a child with its own.
    parents = [-1] * 6 + [rng.choice([0, 0, 1, 2, 3, 4, 5]) for _ in range(24)]
    frequency = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3, 0.01] + [0.1] * 24).double()
    return given_concepts(wordnet, [6, 24], names, frequency), FeatureForest(parents, [6, 24])


def test_shuffled_parents_fire_about_as_often(random_forest):
    concepts, forest = random_forest
    # Sorted by frequency the parents are 5 1 3 4 2 0.
    pairs_of_parents = {5: 0, 1: 0, 3: 1, 4: 1, 2: 2, 0: 2}
    assert set(forest.edges()[:, 0].tolist()) == set(pairs_of_parents)
    result = judge_forest(*random_forest, n_shuffles=200, parents_per_bin=2, n_resamples=10)
    expected = exact_control(concepts, forest, pairs_of_parents.__getitem__)
    assert values(result.overall.shuffled) == pytest.approx(expected, abs=0.02)
    assert expected != pytest.approx(exact_control(concepts, forest, lambda _: 0), abs=0.02)
    gains = {name: values(result.overall.forest)[name] - values(result.overall.shuffled)[name] for name in MEASURES}
    assert values(result.overall.gain) == pytest.approx(gains)


def test_shuffled_parents_are_of_the_same_level(tiny):
    """One parent per level: nobody to change places with."""
    forest = FeatureForest([-1, 0, 0, 1, 1, 1], [1, 2, 3])
    result = judge_forest(given_concepts(tiny, [1, 2, 3], "animal dog cat rex dog cat"), forest)
    assert math.isnan(result.overall.shuffled.under.value)
    assert "2 parents" in result.overall.undefined["shuffled"]
