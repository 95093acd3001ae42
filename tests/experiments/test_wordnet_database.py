"""Reading WordNet, and its hierarchy against plain walks."""

from pathlib import Path

import pytest
import torch
from wordnet_helpers import (
    ABOVE,
    random_wordnet,
    slow_ancestors,
    slow_common_hypernym,
    slow_information,
    tiny_synsets,
)

from experiments.wordnet import database as wordnet_module
from experiments.wordnet.database import NO_CONCEPT, read_wordnet

ARTIFICIAL = {
    "move.v.01": "(verb)", "think.v.01": "(verb)", "big.a.01": "(adjective)", "huge.s.01": "(adjective)",
    "entity.n.01": "(anything)", "quickly.r.01": "(anything)", "(verb)": "(anything)", "(adjective)": "(anything)",
}  # fmt: skip


def write_database(folder: Path) -> Path:
    """The tiny WordNet as wndb(5WN) describes its files."""
    licence = "".join(f"  {i} This software and database is being provided to you | @ 00000001\n" for i in range(1, 4))
    ending = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
    offset = {name: f"{100 * i + 1740:08d}" for i, name in enumerate(ABOVE)}
    synsets = tiny_synsets()
    data: dict[str, list[str]] = {each: [] for each in ending.values()}
    senses: dict[str, dict[str, list[str]]] = {each: {} for each in ending.values()}
    for synset in synsets:
        kind = synset.part_of_speech
        marked = {"huge": "huge(p)"}
        words = " ".join(f"{marked.get(word, word)} 0" for word in synset.lemmas)
        # Pointers of other kinds stand among the hypernyms, and a hyponym below a synset is none above it.
        pointers = [("+", "00009999", "v", "0101"), ("~", "00001740", "n", "0000")]
        for above in synset.hypernyms:
            pointers.append(("@i" if synset.name == "rex.n.01" else "@", offset[above], kind, "0000"))
        frames = " 01 + 02 00" if kind == "v" else ""
        listed = " ".join(" ".join(pointer) for pointer in pointers)
        data[ending[kind]].append(
            f"{offset[synset.name]} 03 {kind} {len(synset.lemmas):02x} {words} {len(pointers):03d} {listed}{frames} | "
            f"{synset.gloss}  \n"
        )
        for word in synset.lemmas:
            senses[ending[kind]].setdefault(word.lower(), []).append(synset.name)
    for each, lines in data.items():
        (folder / f"data.{each}").write_text(licence + "".join(lines), encoding="utf-8")
        index = ""
        for word, names in sorted(senses[each].items()):
            places = " ".join(offset[name] for name in sorted(names, key=lambda name: name.rsplit(".")[-1]))
            index += f"{word} {each[0]} {len(names)} 2 @ ~ {len(names)} 0 {places}  \n"
        (folder / f"index.{each}").write_text(licence + index, encoding="utf-8")
    return folder


def test_the_files_of_wordnet_are_read_as_their_format_says(tmp_path, tiny):
    read = read_wordnet(write_database(tmp_path))
    assert read.synsets == tiny.synsets
    assert [read.name(i) for i in range(read.n_concepts)] == [tiny.name(i) for i in range(tiny.n_concepts)]


def test_parts_of_speech_can_be_chosen(tmp_path):
    nouns = read_wordnet(write_database(tmp_path), "n")
    assert {synset.part_of_speech for synset in nouns.synsets} == {"n"}
    assert nouns.name(nouns.top) == "entity.n.01"
    assert nouns.n_concepts == len(nouns) == 10
    adjectives = read_wordnet(tmp_path, "a")
    assert [synset.name for synset in adjectives.synsets] == ["big.a.01", "huge.s.01"]
    with pytest.raises(ValueError, match="'x'; the letters are n, v, a and r"):
        read_wordnet(tmp_path, "nx")


def test_missing_files_name_the_package_that_has_them(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"index.noun is missing.*apt-get install wordnet-base.*give the folder"
    ):
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
