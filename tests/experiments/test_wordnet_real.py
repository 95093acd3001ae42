"""A planted hierarchy of meanings, and the WordNet of Debian."""

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from sae_lens import JumpReLUSAE
from wordnet_helpers import numbers, readout_levels, word_tokenizer

from experiments.wordnet.concepts import feature_concepts
from experiments.wordnet.database import DEBIAN_FOLDER, Synset, WordNet, read_wordnet
from experiments.wordnet.judge import judge_forest
from experiments.wordnet.text import entry_text, gloss_activations, gloss_rows
from sae_lens_hsae.forest import FeatureForest


def planted(wordnet: WordNet, names: list[str]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Activations whose coordinate i is on where the synset is under concept i, stronger on entry words."""
    concepts = [wordnet.index(name) for name in names]
    table = torch.tensor(
        [[float(concept in wordnet.ancestors(s)) for concept in concepts] for s in range(len(wordnet))]
    )
    return lambda synset, entry: table[synset] * (1 + entry[:, None].float())


def test_a_planted_hierarchy_is_found_and_a_wrong_forest_is_told_apart():
    rng = random.Random(0)
    synsets = [Synset("top.n.01", ("top",), "g")]
    kinds = [f"kind{i}.n.01" for i in range(8)]
    sorts = [f"sort{i}.n.01" for i in range(24)]
    synsets += [Synset(kind, (kind,), "g", ("top.n.01",)) for kind in kinds]
    synsets += [Synset(sort, (sort,), "g", (kinds[i // 3],)) for i, sort in enumerate(sorts)]
    synsets += [Synset(f"leaf{i}.n.01", (f"leaf {i}",), "a b", (sorts[i % 24],)) for i in range(480)]
    rng.shuffle(synsets)
    wordnet = WordNet(synsets)
    rows = gloss_rows(wordnet, word_tokenizer(wordnet), 24, separator_token=0)
    activations = planted(wordnet, kinds + sorts)
    label_of_row = iter(range(0, len(rows), 8))

    def activations_of(tokens: torch.Tensor) -> torch.Tensor:
        start = next(label_of_row)
        part = rows[start : start + len(tokens)]
        flat = activations(part.synset.flatten(), part.is_entry_word.flatten())
        return flat.unflatten(0, part.synset.shape) + 0.001 * torch.randn(*part.synset.shape, 32)

    concepts = feature_concepts(
        [with_threshold(sae) for sae in readout_levels(8, 24)],
        wordnet,
        gloss_activations(rows, activations_of, rows_at_once=8),
        min_concept_size=20,
    )
    assert [concepts.name(feature) for feature in range(32)] == kinds + sorts
    by_hypernym = concepts.by_common_hypernym(0.8)
    assert [by_hypernym.name(feature) for feature in range(8, 32)] == sorts
    # The strongest of a kind's synsets may be of one sort by chance; they never leave the kind.
    for feature, kind in enumerate(kinds):
        assert wordnet.index(kind) in wordnet.ancestors(int(by_hypernym.concept[feature]))

    true = FeatureForest([-1] * 8 + [i // 3 for i in range(24)], [8, 24])
    wrong = FeatureForest([-1] * 8 + [(i // 3 + 1) % 8 for i in range(24)], [8, 24])
    result = judge_forest(concepts, true, (concepts, wrong), parents_per_bin=8)
    assert result.overall.forest.under.value == 1
    assert result.overall.shuffled.subsumed.value == 0
    assert result.overall.forest.under.low > result.overall.shuffled.under.high
    assert result.overall.second_forest is not None
    assert result.overall.second_forest.subsumed.value == 0
    assert result.overall.gain.shared_information.low > 1


def with_threshold(sae: JumpReLUSAE) -> JumpReLUSAE:
    sae.threshold.data = torch.full_like(sae.threshold, 0.5)
    return sae


@pytest.mark.skipif(not (DEBIAN_FOLDER / "data.noun").is_file(), reason="wordnet-base is not installed")
def test_debians_wordnet_is_read_as_it_is():
    real = read_wordnet()
    kinds = [synset.part_of_speech for synset in real.synsets]
    assert len(real) == 117_659
    assert {kind: kinds.count(kind) for kind in "nvasr"} == {
        "n": 82_115, "v": 13_767, "a": 7_463, "s": 10_693, "r": 3_621,
    }  # fmt: skip
    assert real.n_concepts - len(real) == 4
    for below, above, expected in (
        ("dog.n.01", "domestic_animal.n.01", True),
        ("dog.n.01", "dog.n.01", False),
        ("animal.n.01", "dog.n.01", False),
        ("paris.n.01", "city.n.01", True),
        ("sprint.v.01", "run.v.01", True),
        ("huge.s.01", "(adjective)", True),
    ):
        assert bool(real.is_under(numbers(real, below), numbers(real, above))[0]) is expected
    rows = torch.stack([numbers(real, "dog cat wolf"), numbers(real, "oak.n.02 elm tulip")])
    assert [real.name(i) for i in real.common_hypernyms(rows).tolist()] == ["carnivore.n.01", "vascular_plant.n.01"]
    dog = real.synsets[real.index("dog.n.01")]
    assert dog.lemmas == ("dog", "domestic_dog", "Canis_familiaris")
    assert entry_text(dog)[1].startswith("dog: a member of the genus Canis (probably descended from the common wolf)")
    assert real.synsets[real.index("galore.s.01")].lemmas == ("galore",)
    assert all(synset.gloss for synset in real.synsets)


def test_permutations_of_a_small_bin_are_uniform():
    """The exact control above takes it that every pair of a bin is as likely to lend its parent."""
    from experiments.wordnet.judge import _shuffled_within

    bins = torch.tensor([0, 1, 0, 1, 0])
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(_shuffled_within(bins, generator).tolist()) for _ in range(3000)]
    allowed = {
        (a, b, c, d, e) for a, c, e in itertools.permutations([0, 2, 4]) for b, d in itertools.permutations([1, 3])
    }
    counts = {permutation: drawn.count(permutation) for permutation in set(drawn)}
    assert set(counts) == allowed
    assert all(abs(count - 250) < 75 for count in counts.values())
