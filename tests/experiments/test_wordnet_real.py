"""The WordNet of Debian."""

import pytest
import torch
from wordnet_helpers import numbers

from experiments.wordnet.database import DEBIAN_FOLDER, read_wordnet
from experiments.wordnet.text import entry_text


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
    nouns = read_wordnet(parts_of_speech="n")
    assert nouns.synsets == tuple(synset for synset in real.synsets if synset.part_of_speech == "n")
    assert nouns.name(nouns.top) == "entity.n.01"
