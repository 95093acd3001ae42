"""Reading WordNet, and its hierarchy against plain walks."""

import pytest
import torch
from wordnet_helpers import ABOVE, numbers, random_wordnet, slow_ancestors, slow_common_hypernym, slow_information

from experiments.wordnet import database as wordnet_module
from experiments.wordnet.database import DEBIAN_FOLDER, NO_CONCEPT, read_wordnet
from experiments.wordnet.text import entry_text

ARTIFICIAL = {
    "move.v.01": "(verb)", "think.v.01": "(verb)", "big.a.01": "(adjective)", "huge.s.01": "(adjective)",
    "entity.n.01": "(anything)", "quickly.r.01": "(anything)", "(verb)": "(anything)", "(adjective)": "(anything)",
}  # fmt: skip


def test_missing_files_name_the_package_that_has_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index.noun is missing.*apt-get install wordnet-base"):
        read_wordnet(tmp_path / "nowhere")


def test_artificial_concepts_join_what_has_no_hypernym(tiny):
    for name, above in (ABOVE | {"(verb)": [], "(adjective)": [], "(anything)": []}).items():
        expected = above or [ARTIFICIAL[name]] if name != "(anything)" else []
        assert {tiny.name(i) for i in tiny.hypernyms(tiny.index(name))} == set(expected), name
    assert tiny.name(tiny.top) == "(anything)"
    assert tiny.name(NO_CONCEPT) == "(no concept)"
    assert repr(tiny) == "WordNet(16 synsets, 3 artificial concepts)"


@pytest.mark.parametrize("seed", range(3))
def test_hierarchy_equals_plain_walks(seed):
    wordnet = random_wordnet(seed)
    for a in range(wordnet.n_concepts):
        above = slow_ancestors(wordnet, a)
        assert wordnet.ancestors(a) == sorted(above)
        assert wordnet.information[a].item() == pytest.approx(slow_information(wordnet, a), abs=1e-12)
        others = torch.arange(-1, wordnet.n_concepts)
        under = wordnet.is_under(torch.full_like(others, a), others)
        assert under.tolist() == [b in above and b != a for b in others.tolist()]
        assert not wordnet.is_under(torch.full_like(others, NO_CONCEPT), others).any()
        assert (wordnet.information[list(above - {a})] < wordnet.information[a]).all()


@pytest.mark.parametrize("seed", range(3))
def test_common_hypernyms_equal_a_search_over_all_concepts(seed, monkeypatch):
    wordnet = random_wordnet(seed, n=40)
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.randint(-1, wordnet.n_concepts, (30, 3), generator=generator)
    concepts[torch.rand(concepts.shape, generator=generator) < 0.3] = NO_CONCEPT
    concepts[0] = NO_CONCEPT
    expected = [slow_common_hypernym(wordnet, row) for row in concepts.tolist()]
    assert wordnet.common_hypernyms(concepts).tolist() == expected
    monkeypatch.setattr(wordnet_module, "MAX_PATHS_AT_ONCE", 100)
    assert wordnet.common_hypernyms(concepts).tolist() == expected


@pytest.mark.skipif(not (DEBIAN_FOLDER / "data.noun").is_file(), reason="wordnet-base is not installed")
def test_debians_wordnet_is_read_as_it_is():
    real = read_wordnet()
    kinds = [synset.part_of_speech for synset in real.synsets]
    assert len(real) == 117_659
    assert {kind: kinds.count(kind) for kind in "nvasr"} == {
        "n": 82_115, "v": 13_767, "a": 7_463, "s": 10_693, "r": 3_621,
    }  # fmt: skip
    assert real.n_concepts - len(real) == 4
    rows = numbers(real, "dog cat wolf")[None]
    assert [real.name(i) for i in real.common_hypernyms(rows).tolist()] == ["carnivore.n.01"]
    dog = real.synsets[real.index("dog.n.01")]
    assert dog.lemmas == ("dog", "domestic_dog", "Canis_familiaris")
    assert entry_text(dog)[1].startswith("dog: a member of the genus Canis (probably descended from the common wolf)")
    assert real.synsets[real.index("galore.s.01")].lemmas == ("galore",)
    assert all(synset.gloss for synset in real.synsets)
    nouns = read_wordnet(parts_of_speech="n")
    assert nouns.synsets == tuple(synset for synset in real.synsets if synset.part_of_speech == "n")
    assert nouns.name(nouns.top) == "entity.n.01"
