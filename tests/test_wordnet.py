"""Concepts from WordNet and their judge: a tiny WordNet where every answer is known, slow references, the real one."""

import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from sae_lens_hsae.evaluation.cluster_bootstrap import Estimate, resampled_means
from sae_lens_hsae.evaluation.wordnet import concepts as wordnet_concepts
from sae_lens_hsae.evaluation.wordnet import database as wordnet_module
from sae_lens_hsae.evaluation.wordnet import scores as wordnet_scores
from sae_lens_hsae.evaluation.wordnet.concepts import FeatureConcepts, feature_concepts
from sae_lens_hsae.evaluation.wordnet.database import DEBIAN_FOLDER, NO_CONCEPT, Synset, WordNet, read_wordnet
from sae_lens_hsae.evaluation.wordnet.judge import MEASURES, judge_forest
from sae_lens_hsae.evaluation.wordnet.report import PairRates
from sae_lens_hsae.evaluation.wordnet.text import NO_SYNSET, entry_text, gloss_activations, gloss_rows
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.levels import Levels

# A tiny WordNet, in the order of its files. dog.n.01 has two hypernyms, rex.n.01 is an instance, (verb) and (adjective)
# are artificial, and quickly.r.01, the only adverb, stands right under (anything).
ABOVE = {
    "entity.n.01": [],
    "animal.n.01": ["entity.n.01"],
    "pet.n.01": ["animal.n.01"],
    "canine.n.01": ["animal.n.01"],
    "dog.n.02": ["food.n.01"],
    "dog.n.01": ["canine.n.01", "pet.n.01"],
    "rex.n.01": ["dog.n.01"],
    "cat.n.01": ["pet.n.01"],
    "food.n.01": ["entity.n.01"],
    "bread.n.01": ["food.n.01"],
    "move.v.01": [],
    "run.v.01": ["move.v.01"],
    "think.v.01": [],
    "big.a.01": [],
    "huge.s.01": [],
    "quickly.r.01": [],
}
ARTIFICIAL = {
    "move.v.01": "(verb)", "think.v.01": "(verb)", "big.a.01": "(adjective)", "huge.s.01": "(adjective)",
    "entity.n.01": "(anything)", "quickly.r.01": "(anything)", "(verb)": "(anything)", "(adjective)": "(anything)",
}  # fmt: skip
UNDER = {
    "(anything)": 16, "entity.n.01": 10, "animal.n.01": 6, "pet.n.01": 4, "canine.n.01": 3, "dog.n.01": 2,
    "rex.n.01": 1, "cat.n.01": 1, "food.n.01": 3, "dog.n.02": 1, "bread.n.01": 1, "(verb)": 3, "move.v.01": 2,
    "run.v.01": 1, "think.v.01": 1, "(adjective)": 2, "big.a.01": 1, "huge.s.01": 1, "quickly.r.01": 1,
}  # fmt: skip
GLOSSES = {"dog.n.01": 'a canine that barks; "the dog barked"', "rex.n.01": "a dog of that name"}


def tiny_synsets() -> list[Synset]:
    lemmas = {"rex.n.01": ("Rex", "Rex_the_dog"), "huge.s.01": ("huge", "very_big")}
    return [
        Synset(
            name,
            lemmas.get(name, (name.split(".")[0],)),
            GLOSSES.get(name, f"what one calls {name.split('.')[0]}"),
            tuple(above),
        )
        for name, above in ABOVE.items()
    ]


@pytest.fixture
def tiny() -> WordNet:
    return WordNet(tiny_synsets())


def numbers(wordnet: WordNet, names: str) -> torch.Tensor:
    """Concepts by name, ``-`` for none; ending ``.n.01`` may be left out."""

    def one(name: str) -> int:
        if name == "-":
            return NO_CONCEPT
        return wordnet.index(name if "." in name or "(" in name else f"{name}.n.01")

    return torch.tensor([one(name) for name in names.split()])


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


def random_wordnet(seed: int, n: int = 60) -> WordNet:
    """Nouns and verbs, each with up to three hypernyms among the earlier ones of its kind, listed in random order."""
    rng = random.Random(seed)
    names = [f"w{i}.{'nnv'[i % 3]}.01" for i in range(n)]
    synsets = []
    for i, name in enumerate(names):
        earlier = [other for other in names[:i] if other.split(".")[1] == name.split(".")[1]]
        above = rng.sample(earlier, min(len(earlier), rng.choice([0, 1, 1, 1, 1, 2, 3])))
        synsets.append(Synset(name, (f"w{i}",), "gloss", tuple(above)))
    rng.shuffle(synsets)
    return WordNet(synsets)


@cache
def slow_ancestors(wordnet: WordNet, concept: int) -> frozenset[int]:
    return frozenset({concept}).union(*(slow_ancestors(wordnet, above) for above in wordnet.hypernyms(concept)))


@cache
def slow_information(wordnet: WordNet, concept: int) -> float:
    n_under = sum(concept in slow_ancestors(wordnet, synset) for synset in range(len(wordnet)))
    return -math.log(n_under / len(wordnet))


def slow_common_hypernym(wordnet: WordNet, concepts: list[int], coverage: float) -> int:
    given = [concept for concept in concepts if concept != NO_CONCEPT]
    best, found = (-math.inf, 0, 0), NO_CONCEPT
    for candidate in range(wordnet.n_concepts if given else 0):
        covered = sum(candidate in slow_ancestors(wordnet, concept) for concept in given)
        if covered >= coverage * len(given) - 1e-9:
            key = (round(slow_information(wordnet, candidate), 9), covered, -candidate)
            if key > best:
                best, found = key, candidate
    return found


# The database


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


@pytest.mark.parametrize(
    "line",
    [
        "00001740 03 n zz entity 0 000 | gloss",
        "00001740 03 n 01 entity 0 002 @ 00001741 | gloss",
        "00001740 03 n 01 x 0",
    ],
)
def test_a_damaged_line_is_shown(tmp_path, line):
    write_database(tmp_path)
    (tmp_path / "data.noun").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"data.noun: cannot read the line '00001740 03 n"):
        read_wordnet(tmp_path)


@pytest.mark.parametrize(
    ("synsets", "message"),
    [
        ([], "synsets is empty"),
        ([Synset("a.n.01", ("a",), "g"), Synset("a.n.01", ("a",), "g")], "'a.n.01' twice"),
        ([Synset("a.n.01", ("a",), "g", ("b.n.01",))], "'a.n.01' has the hypernym 'b.n.01', which is not among"),
        ([Synset("a", ("a",), "g")], "'a' needs a lemma and a name like dog.n.01"),
        ([Synset("a.q.01", ("a",), "g")], "'a.q.01' needs a lemma and a name like"),
        ([Synset("a.n.01", (), "g")], "'a.n.01' needs a lemma"),
        (
            [Synset("a.n.01", ("a",), "g", ("b.n.01",)), Synset("b.n.01", ("b",), "g", ("a.n.01",))],
            r"hypernyms form a cycle: \w.n.01 → \w.n.01 → \w.n.01",
        ),
    ],
)
def test_invalid_synsets_are_refused(synsets, message):
    with pytest.raises(ValueError, match=message):
        WordNet(synsets)


# Its hierarchy


def test_artificial_concepts_join_what_has_no_hypernym(tiny):
    for name, above in (ABOVE | {"(verb)": [], "(adjective)": [], "(anything)": []}).items():
        expected = above or [ARTIFICIAL[name]] if name != "(anything)" else []
        assert {tiny.name(i) for i in tiny.hypernyms(tiny.index(name))} == set(expected), name
    assert tiny.name(tiny.top) == "(anything)"
    assert tiny.name(NO_CONCEPT) == "(no concept)"
    assert repr(tiny) == "WordNet(16 synsets, 3 artificial concepts)"


def test_ancestors_are_followed_on_every_path(tiny):
    names = {tiny.name(i) for i in tiny.ancestors(tiny.index("rex.n.01"))}
    expected = "rex dog canine pet animal entity"
    assert names == {f"{name}.n.01" for name in expected.split()} | {"(anything)"}


def test_information_is_the_negative_log_of_the_share_under_a_concept(tiny):
    assert len(UNDER) == tiny.n_concepts
    for name, n_under in UNDER.items():
        assert tiny.information[tiny.index(name)].item() == pytest.approx(math.log(16 / n_under), abs=1e-12), name


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


@pytest.mark.parametrize(
    ("concepts", "coverage", "expected"),
    [
        ("dog cat", 1.0, "pet"),
        ("dog dog", 1.0, "dog"),
        ("dog rex", 1.0, "dog"),
        ("rex pet", 1.0, "pet"),
        ("dog bread", 1.0, "entity"),
        ("dog run.v.01", 1.0, "(anything)"),
        ("run.v.01 think.v.01", 1.0, "(verb)"),
        ("big.a.01 huge.s.01", 1.0, "(adjective)"),
        ("dog cat rex bread", 1.0, "entity"),
        ("dog cat rex bread", 0.75, "pet"),
        ("dog cat rex bread", 0.76, "entity"),
        ("dog cat rex bread", 0.5, "dog"),
        ("- dog - cat", 1.0, "pet"),
        ("- - -", 1.0, "-"),
        # canine (3 under it) is over as many as pet (4), and more special.
        ("dog rex - -", 1.0, "dog"),
    ],
)
def test_the_lowest_common_hypernym_by_hand(tiny, concepts, coverage, expected):
    found = tiny.common_hypernyms(numbers(tiny, concepts)[None], coverage)
    assert tiny.name(int(found)) == tiny.name(int(numbers(tiny, expected)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("coverage", [1.0, 0.7, 0.5, 0.2])
def test_common_hypernyms_equal_a_search_over_all_concepts(seed, coverage, monkeypatch):
    wordnet = random_wordnet(seed, n=40)
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.randint(-1, wordnet.n_concepts, (30, 10), generator=generator)
    concepts[torch.rand(concepts.shape, generator=generator) < 0.3] = NO_CONCEPT
    concepts[0] = NO_CONCEPT
    expected = [slow_common_hypernym(wordnet, row, coverage) for row in concepts.tolist()]
    assert wordnet.common_hypernyms(concepts, coverage).tolist() == expected
    monkeypatch.setattr(wordnet_module, "MAX_PATHS_AT_ONCE", 100)
    assert wordnet.common_hypernyms(concepts, coverage).tolist() == expected


def test_coverage_must_be_a_share(tiny):
    for coverage in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"coverage={coverage} must be above 0 and at most 1"):
            tiny.common_hypernyms(torch.zeros(1, 1, dtype=torch.int64), coverage)


# Its text


def word_tokenizer(wordnet: WordNet) -> PreTrainedTokenizerFast:
    pre_tokenizer = Whitespace()
    texts = [entry_text(synset)[1] for synset in wordnet.synsets]
    words = sorted({word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text)})
    model = WordLevel({"[SEP]": 0, "[BOS]": 1, **{word: i for i, word in enumerate(words, start=2)}}, unk_token="[SEP]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer  # type: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("first_token", [None, 1])
@pytest.mark.parametrize("context_size", [16, 17, 40, 1000])
def test_every_gloss_stands_whole_in_one_row_with_its_entry_word_marked(tiny, context_size, first_token):
    tokenizer = word_tokenizer(tiny)
    rows = gloss_rows(tiny, tokenizer, context_size, separator_token=0, first_token=first_token)
    assert rows.tokens.shape[1] == context_size
    assert len(rows) == len(rows.synset) == len(rows.is_entry_word)
    for number, synset in enumerate(tiny.synsets):
        row, column = (rows.synset == number).nonzero(as_tuple=True)
        assert len(row.unique()) == 1
        assert (column.diff() == 1).all()
        assert tokenizer.decode(rows.tokens[row, column]) == tokenizer.decode(tokenizer.encode(entry_text(synset)[1]))
        assert rows.is_entry_word[row, column].tolist() == [True] + [False] * (len(row) - 1)
        end = column[-1] + 1
        assert end == context_size or rows.tokens[row[0], end] == 0
    if first_token is not None:
        assert (rows.tokens[:, 0] == first_token).all()
        assert (rows.synset[:, 0] == NO_SYNSET).all()
    assert not rows.is_entry_word[rows.synset == NO_SYNSET].any()


def test_entry_words_of_several_tokens_have_spaces():
    synset = Synset("hot_dog.n.01", ("hot_dog", "frank"), "a dog to eat")
    assert entry_text(synset) == ("hot dog", "hot dog: a dog to eat")
    wordnet = WordNet([synset])
    rows = gloss_rows(wordnet, word_tokenizer(wordnet), 8, separator_token=0)
    # hot dog : a dog to eat [SEP]
    assert rows.is_entry_word.tolist() == [[True, True] + [False] * 6]
    assert rows.synset.tolist() == [[0] * 7 + [NO_SYNSET]]


def test_rows_are_filled_up_with_text_and_long_glosses_cut():
    wordnet = WordNet(Synset(f"w{i}.n.01", (f"w{i}",), "a b c") for i in range(3))
    tokenizer = word_tokenizer(wordnet)
    rows = gloss_rows(wordnet, tokenizer, 8, separator_token=0, seed=1)
    order = [int(row[0]) for row in rows.synset]
    assert sorted(order) == [0, 1, 2]
    decoded = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in rows.tokens]
    following = [*order[1:], order[0]]
    assert decoded == [
        [f"w{here}", ":", "a", "b", "c", "[SEP]", f"w{there}", ":"]
        for here, there in zip(order, following, strict=True)
    ]
    short = gloss_rows(wordnet, tokenizer, 4, separator_token=0, seed=1)
    assert [tokenizer.convert_ids_to_tokens(row.tolist()) for row in short.tokens] == [
        [f"w{here}", ":", "a", "b"] for here in order
    ]


def test_a_random_part_of_the_glosses_and_the_data_set_for_training(tiny):
    tokenizer = word_tokenizer(tiny)
    rows = gloss_rows(tiny, tokenizer, 20, separator_token=0, n_glosses=5, seed=3)
    assert len(rows.synset.unique()) == 6
    other = gloss_rows(tiny, tokenizer, 20, separator_token=0, n_glosses=5, seed=4)
    assert set(rows.synset.unique().tolist()) != set(other.synset.unique().tolist())
    assert rows.dataset().column_names == ["tokens"]
    assert rows.dataset()["tokens"][:] == rows.tokens.tolist()


def test_text_refuses_what_it_cannot_lay_out(tiny):
    with pytest.raises(ValueError, match="tokenizer is a SimpleNamespace, which has no offsets"):
        gloss_rows(tiny, SimpleNamespace(is_fast=False), 20, 0)
    with pytest.raises(ValueError, match="n_glosses=17 must be 1 … 16"):
        gloss_rows(tiny, word_tokenizer(tiny), 20, 0, n_glosses=17)
    with pytest.raises(ValueError, match=r"context_size=2 leaves no room.*at least 3"):
        gloss_rows(tiny, word_tokenizer(tiny), 2, 0, first_token=1)


def test_activations_keep_their_labels(tiny):
    rows = gloss_rows(tiny, word_tokenizer(tiny), 20, separator_token=0, first_token=1)
    # As activation the token and its place in the row.
    place = torch.arange(20.0).expand(len(rows), 20)

    def activations_of(tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([tokens.float(), place[: len(tokens)]], dim=-1)

    batches = list(gloss_activations(rows, activations_of, rows_at_once=3))
    assert len(batches) == math.ceil(len(rows) / 3)
    x, synset, is_entry_word = (torch.cat(parts) for parts in zip(*batches, strict=True))
    kept = rows.synset != NO_SYNSET
    assert torch.equal(x, torch.stack([rows.tokens.float(), place], dim=-1)[kept])
    assert torch.equal(synset, rows.synset[kept])
    assert torch.equal(is_entry_word, rows.is_entry_word[kept])
    with pytest.raises(ValueError, match=r"gave the shape \(3, 10, 2\) for tokens of shape \(3, 20\)"):
        next(gloss_activations(rows, lambda tokens: activations_of(tokens)[:, :10], rows_at_once=3))


# Concepts of features


def readout_levels(*widths: int) -> list[JumpReLUSAE]:
    """Levels whose features read one coordinate of x each: x itself says which features are active, and how much."""
    levels = []
    for rows in torch.eye(sum(widths)).split(widths):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=sum(widths), d_sae=len(rows)))
        sae.W_enc.data, sae.W_dec.data = rows.T.clone(), rows.clone()
        levels.append(sae)
    return levels


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


def slow_scores(acts: torch.Tensor, synset: torch.Tensor, read: torch.Tensor, score: str) -> dict[int, float]:
    """One feature's score on every synset that is read."""
    reduced = {"mean": lambda each: sum(each) / len(each), "peak": max, "fires": lambda each: float(max(each) > 0)}
    return {
        number: reduced[score]([max(0.0, value) for value in acts[read & (synset == number)].tolist()])
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


@pytest.mark.parametrize("read", ["entry_word", "gloss"])
@pytest.mark.parametrize("score", ["mean", "peak", "fires"])
@pytest.mark.parametrize("seed", range(2))
def test_concepts_equal_a_loop_over_features_and_synsets(read: Any, score: Any, seed, monkeypatch):
    monkeypatch.setattr(wordnet_scores, "MAX_TOKENS_AT_ONCE", 5)
    monkeypatch.setattr(wordnet_concepts, "FEATURES_AT_ONCE", 5)
    monkeypatch.setattr(wordnet_concepts, "SIGNIFICANCE", 20.0)  # else hardly a random feature has a concept
    wordnet = random_wordnet(seed)
    saes = readout_levels(4, 9)
    x, synset, is_entry_word = random_glosses(wordnet, 13, seed)
    glosses = cut((x, synset, is_entry_word), seed)
    concepts = feature_concepts(saes, wordnet, glosses, read=read, score=score, min_concept_size=3, k=6)
    wanted = is_entry_word == (read == "entry_word")
    n_synsets = len(synset[wanted].unique())
    for feature in range(13):
        scores = slow_scores(x[:, feature], synset, wanted, score)
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


@pytest.mark.parametrize("score", ["mean", "peak"])
def test_common_hypernyms_of_the_strongest_synsets_equal_a_loop(score: Any, monkeypatch):
    monkeypatch.setattr(wordnet_scores, "MAX_TOKENS_AT_ONCE", 5)
    wordnet = random_wordnet(1)
    x, synset, is_entry_word = random_glosses(wordnet, 13, 1)
    concepts = feature_concepts(
        readout_levels(4, 9), wordnet, cut((x, synset, is_entry_word), 1), score=score, min_concept_size=3, k=6
    )
    assert concepts.synsets.shape == (13, 6)
    by_hypernym = concepts.by_common_hypernym(0.6, min_synsets=3)
    for feature in range(13):
        scores = slow_scores(x[:, feature], synset, is_entry_word, score)
        kept = sorted((number for number in scores if scores[number] > 0), key=lambda n: -scores[n])[:6]
        assert [number for number in concepts.synsets[feature].tolist() if number != NO_CONCEPT] == kept
        concept = slow_common_hypernym(wordnet, kept, 0.6) if len(kept) >= 3 else NO_CONCEPT
        assert by_hypernym.concept[feature] == concept
        assert by_hypernym.name(feature) == wordnet.name(concept)
        information = slow_information(wordnet, concept) if concept != NO_CONCEPT else math.nan
        assert by_hypernym.information[feature].item() == pytest.approx(information, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("score", ["mean", "fires"])
def test_what_could_be_chance_is_no_concept(score: Any):
    """Random features have no concept, however seldom they fire; one that prefers a concept's synsets has it."""
    wordnet = random_wordnet(0, n=600)
    generator = torch.Generator().manual_seed(0)
    concept = int((wordnet.n_under == wordnet.n_under[wordnet.n_under < 100].max()).nonzero()[0])
    x = torch.randn(600, 400, generator=generator) - torch.linspace(0, 2.5, 400)
    under = torch.tensor([concept in wordnet.ancestors(synset) for synset in range(600)])
    x[under, 0] += 2
    glosses = [(x, torch.arange(600), torch.ones(600, dtype=torch.bool))]
    concepts = feature_concepts(readout_levels(400), wordnet, glosses, score=score, min_concept_size=10)
    assert concepts.concept[0] == concept
    assert (concepts.concept[1:] != NO_CONCEPT).sum() <= 4
    assert not concepts.correlation.isnan().any()
    none = feature_concepts(readout_levels(400), wordnet, glosses, min_concept_size=600)
    assert (none.concept == NO_CONCEPT).all()
    assert none.correlation.isnan().all()


def test_a_concept_must_have_been_read_often_enough(tiny, monkeypatch):
    """Six of the sixteen synsets are read, of which two are under pet; min_concept_size counts those."""
    monkeypatch.setattr(wordnet_concepts, "SIGNIFICANCE", 5.0)  # six synsets prove nothing
    synsets = numbers(tiny, "dog cat food bread run.v.01 big.a.01")
    x = torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0], [0.0]])
    for min_size, expected in ((2, "pet.n.01"), (3, "entity.n.01")):
        concepts = feature_concepts(
            readout_levels(1), tiny, [(x, synsets, torch.ones(6, dtype=torch.bool))], min_concept_size=min_size
        )
        assert concepts.name(0) == expected


def one_batch(**changes: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    fields = {"x": torch.ones(4, 3), "synset": torch.tensor([0, 0, 1, 2]), "entry": torch.ones(4, dtype=torch.bool)}
    return [tuple((fields | changes).values())]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("glosses", "options", "message"),
    [
        ([], {}, "glosses held no token with read='entry_word'"),
        (one_batch(), {"read": "gloss"}, "glosses held no token with read='gloss'"),
        (one_batch(synset=torch.tensor([0, 1, 1, 0])), {}, "not one after another"),
        (one_batch() + one_batch(), {}, "not one after another"),
        (one_batch(synset=torch.tensor([0, 0, 1, 16])), {}, r"names a synset that is none of 0 … 15"),
        (one_batch(synset=torch.tensor([-1, 0, 1, 2])), {}, r"names a synset that is none of 0 … 15"),
        (one_batch(x=torch.full((4, 3), math.nan)), {}, "batch 0 holds NaN or infinity"),
        (one_batch(x=torch.ones(4, 5)), {}, r"batch 0 has the shapes \(4, 5\).*expected \(n, 3\)"),
        (one_batch(synset=torch.tensor([0])), {}, r"batch 0 has the shapes \(4, 3\), \(1,\)"),
        (one_batch(), {"k": 0}, "k=0 must be at least 1"),
        (one_batch(), {"min_concept_size": 0}, "min_concept_size=0 must be at least 1"),
        (one_batch(), {"read": "both"}, "read='both' is unknown"),
        (one_batch(), {"score": "sum"}, "score='sum' is unknown"),
    ],
)
def test_bad_glosses_are_refused(tiny, glosses, options, message):
    with pytest.raises(ValueError, match=message):
        feature_concepts(readout_levels(1, 2), tiny, glosses, **options)


# The judge


def given_concepts(
    wordnet: WordNet, widths: list[int], names: str, frequency: torch.Tensor | None = None
) -> FeatureConcepts:
    concept = numbers(wordnet, names)
    frequency = torch.full((len(concept),), 0.1).double() if frequency is None else frequency
    empty, levels = torch.empty(0), Levels(tuple(widths))
    return FeatureConcepts(wordnet, levels, empty, empty, empty, empty, frequency, 100, 16).with_concept(concept)


def values(rates: PairRates) -> dict[str, float]:
    return {name: getattr(rates, name).value for name in MEASURES}


@pytest.fixture
def judged(tiny) -> tuple[FeatureConcepts, FeatureForest]:
    """Three levels: animal, (anything) and food on top."""
    names = "animal (anything) food - " + "dog animal bread run.v.01 entity " + "rex dog cat dog.n.02 food animal"
    concepts = given_concepts(tiny, [4, 5, 6], names)
    parents = [-1] * 4 + [0, 0, 2, 1, 3] + [4, 4, 4, 6, 6, -1]
    return concepts, FeatureForest(parents, [4, 5, 6])


def test_rates_of_a_forest_by_hand(judged):
    result = judge_forest(*judged)
    coarse, fine = result.boundaries
    info = {name: math.log(16 / n) for name, n in UNDER.items()}

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


def test_general_parents_can_be_left_out(judged):
    result = judge_forest(*judged, min_parent_information=0.5)
    assert (result.boundaries[0].n_pairs, result.boundaries[0].n_pairs_left_out) == (3, 2)
    assert values(result.boundaries[0].forest)["under"] == pytest.approx(2 / 3)


def test_trees_are_ranked_by_what_pairs_share(judged):
    result = judge_forest(*judged)
    info = {name: math.log(16 / n) for name, n in UNDER.items()}
    # The tree of animal has 5 pairs, those of food 3 and of (anything) 1, too few.
    assert result.n_trees == 1
    (best,), (worst,) = result.best_trees, result.worst_trees
    assert best == worst
    dog, pet, animal = info["dog.n.01"], info["pet.n.01"], info["animal.n.01"]
    assert best.score == pytest.approx((2 * animal + 2 * dog + (2 * pet - dog)) / 5)
    assert (best.root, best.concept, best.n_pairs, best.n_subsumed) == (0, "animal.n.01", 5, 4)
    assert best.children == ("dog.n.01", "animal.n.01")
    assert result.pair_score[6].item() == pytest.approx(info["food.n.01"])
    assert result.pair_score[12].item() == pytest.approx(2 * info["food.n.01"] - info["bread.n.01"])
    assert result.pair_score[[0, 8, 14]].isnan().all()


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
    text = str(result)
    assert "Best 2 of 3 trees" in text
    assert "4/4  animal.n.01 ← dog.n.01, cat.n.01, rex.n.01, animal.n.01" in text


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
            shared = slow_information(wordnet, slow_common_hypernym(wordnet, [p, c], 1.0))
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


def test_shuffled_pairs_have_the_expectation_of_other_parents(random_forest):
    concepts, forest = random_forest
    result = judge_forest(*random_forest, n_shuffles=200, parents_per_bin=6, n_resamples=10)
    expected = exact_control(concepts, forest, lambda _: 0)
    assert values(result.overall.shuffled) == pytest.approx(expected, abs=0.02)
    gains = {name: values(result.overall.forest)[name] - values(result.overall.shuffled)[name] for name in MEASURES}
    assert values(result.overall.gain) == pytest.approx(gains)


def test_shuffled_parents_fire_about_as_often(random_forest):
    concepts, forest = random_forest
    # Sorted by frequency the parents are 5 1 3 4 2 0.
    pairs_of_parents = {5: 0, 1: 0, 3: 1, 4: 1, 2: 2, 0: 2}
    assert set(forest.edges()[:, 0].tolist()) == set(pairs_of_parents)
    result = judge_forest(*random_forest, n_shuffles=200, parents_per_bin=2, n_resamples=10)
    expected = exact_control(concepts, forest, pairs_of_parents.__getitem__)
    assert values(result.overall.shuffled) == pytest.approx(expected, abs=0.02)
    assert expected != pytest.approx(exact_control(concepts, forest, lambda _: 0), abs=0.02)


def test_shuffled_parents_are_of_the_same_level(tiny):
    """One parent per level: nobody to change places with."""
    forest = FeatureForest([-1, 0, 0, 1, 1, 1], [1, 2, 3])
    result = judge_forest(given_concepts(tiny, [1, 2, 3], "animal dog cat rex dog cat"), forest)
    assert math.isnan(result.overall.shuffled.under.value)
    assert "2 parents" in result.overall.undefined["shuffled"]
    assert "–" in str(result)


def test_a_second_forest_is_judged_beside(tiny, judged):
    concepts, forest = judged
    other_forest = FeatureForest([-1] * 4 + [2] * 5 + [5] * 6, [4, 5, 6])
    result = judge_forest(concepts, forest, (concepts, other_forest))
    alone = judge_forest(concepts, other_forest)
    for record, other in zip(result.boundaries, alone.boundaries, strict=True):
        assert record.second_forest is not None
        assert values(record.second_forest) == pytest.approx(values(other.forest), nan_ok=True)
        assert other.second_forest is None
    with pytest.raises(ValueError, match="the second forest has 2 levels, the first 3"):
        judge_forest(concepts, forest, (given_concepts(tiny, [1, 2], "dog cat rex"), FeatureForest([-1, 0, 0], [1, 2])))


def test_the_result_is_plain_and_readable(judged):
    result = judge_forest(*judged, second=judged)
    assert result == judge_forest(*judged, second=judged)
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert list(record) == ["boundaries", "overall", "best_trees", "worst_trees", "n_trees"]
    assert record["overall"]["forest"]["under"]["value"] == pytest.approx(4 / 9)
    assert record["best_trees"][0]["concept"] == "animal.n.01"
    lines = str(result).splitlines()
    assert " ".join(lines[0].split()) == (
        "boundary pairs under equal neither subsumed more specific shared information"
    )
    assert lines[1].split()[:5] == ["0", "→", "1", "4", "forest"]
    assert [line.split()[0] for line in lines[2:5]] == ["shuffled", "gain", "second"]


def test_judge_refuses_what_does_not_fit(judged):
    concepts, forest = judged
    with pytest.raises(ValueError, match=r"widths \[4, 5, 6\], but the forest has level_widths=\[2, 3\]"):
        judge_forest(concepts, FeatureForest([-1, -1, 0, 1, 0], [2, 3]))
    for name, least in (("n_shuffles", 1), ("parents_per_bin", 2), ("n_resamples", 2)):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least {least}"):
            judge_forest(concepts, forest, **{name: 0})  # type: ignore[reportArgumentType]


def test_nothing_to_judge_is_nan_with_a_reason(tiny):
    concepts = given_concepts(tiny, [2, 3], "- - dog cat rex")
    result = judge_forest(concepts, FeatureForest([-1, -1, 0, 0, 1], [2, 3]))
    assert (result.overall.n_pairs, result.overall.n_pairs_left_out, result.n_trees) == (0, 3, 0)
    for rates in (result.overall.forest, result.overall.shuffled, result.overall.gain):
        assert all(math.isnan(value) for value in values(rates).values())
    assert "no assigned pair" in result.overall.undefined["forest"]
    assert "no assigned pair" in str(result)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["overall"]["forest"]["under"]["value"] is None


# Intervals


def test_the_bootstrap_resamples_whole_clusters():
    """Forty clusters of 25 equal rows vary as forty numbers do, not as a thousand."""
    generator = torch.Generator().manual_seed(0)
    of_cluster = torch.randn(40, generator=generator, dtype=torch.float64)
    cluster = torch.arange(40).repeat_interleave(25) * 7
    means = resampled_means(of_cluster.repeat_interleave(25)[:, None], cluster, 4000, generator)
    estimate = means.estimate(0)
    error = of_cluster.std(correction=0).item() / 40**0.5
    assert estimate.value == pytest.approx(of_cluster.mean().item())
    assert estimate.low == pytest.approx(estimate.value - 1.96 * error, abs=0.2 * error)
    assert estimate.high == pytest.approx(estimate.value + 1.96 * error, abs=0.2 * error)


def test_resampled_means_equal_a_loop():
    values = torch.tensor([[1.0, math.nan], [2.0, 3.0], [4.0, 5.0], [8.0, 7.0]])
    cluster = torch.tensor([5, 5, 2, 9])
    means = resampled_means(values, cluster, 50, torch.Generator().manual_seed(1))
    drawn = torch.randint(3, (50, 3), generator=torch.Generator().manual_seed(1)).tolist()
    rows = {0: [2], 1: [0, 1], 2: [3]}
    for resample, clusters in enumerate(drawn):
        chosen = [row for each in clusters for row in rows[each]]
        for column in (0, 1):
            numbers = [value for value in values[chosen, column].tolist() if not math.isnan(value)]
            assert means.resampled[resample, column].item() == pytest.approx(sum(numbers) / len(numbers))
    assert means.means.tolist() == [3.75, 5.0]
    assert means.n_clusters.tolist() == [3, 3]
    paired = means.resampled[:, 0] - means.resampled[:, 1]
    difference = means.difference(0, 1)
    assert difference.value == -1.25
    assert difference.low == pytest.approx(paired.quantile(0.025).item())


def test_intervals_where_resampling_cannot_give_one():
    generator = torch.Generator().manual_seed(0)
    single = resampled_means(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64), 10, generator).estimate(0, True)
    assert (single.value, math.isnan(single.low), math.isnan(single.high)) == (1.0, True, True)
    # No failure in ten: Wilson's lower bound, 10 / (10 + 1.96²).
    sure = resampled_means(torch.ones(10, 1), torch.arange(10), 10, generator).estimate(0, True)
    assert (sure.value, sure.low, sure.high) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    never = resampled_means(torch.zeros(10, 1), torch.arange(10), 10, generator).estimate(0, True)
    assert (never.value, never.low, never.high) == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4)
    nothing = resampled_means(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 10, generator)
    assert math.isnan(nothing.estimate(0).value)


def test_intervals_apart():
    assert Estimate(0.5, 0.4, 0.6).is_apart_from(Estimate(0.7, 0.61, 0.8))
    assert Estimate(0.7, 0.61, 0.8).is_apart_from(Estimate(0.5, 0.4, 0.6))
    assert not Estimate(0.5, 0.4, 0.6).is_apart_from(Estimate(0.7, 0.6, 0.8))
    assert not Estimate(0.5, math.nan, math.nan).is_apart_from(Estimate(0.7, 0.6, 0.8))


# All of it


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
    assert result.overall.forest.under.is_apart_from(result.overall.shuffled.under)
    assert result.overall.second_forest is not None
    assert result.overall.second_forest.subsumed.value == 0
    assert result.overall.gain.shared_information.low > 1


def with_threshold(sae: JumpReLUSAE) -> JumpReLUSAE:
    sae.threshold.data = torch.full_like(sae.threshold, 0.5)
    return sae


# The real one


@pytest.fixture(scope="module")
def real() -> WordNet:
    return read_wordnet()


@pytest.mark.skipif(not (DEBIAN_FOLDER / "data.noun").is_file(), reason="wordnet-base is not installed")
class TestWordnetBase:
    def test_counts(self, real):
        kinds = [synset.part_of_speech for synset in real.synsets]
        assert len(real) == 117_659
        assert {kind: kinds.count(kind) for kind in "nvasr"} == {
            "n": 82_115, "v": 13_767, "a": 7_463, "s": 10_693, "r": 3_621,
        }  # fmt: skip
        assert real.n_concepts - len(real) == 4
        assert [real.name(i) for i in real.hypernyms(real.index("entity.n.01"))] == ["(anything)"]
        assert [real.name(i) for i in real.hypernyms(real.index("huge.s.01"))] == ["(adjective)"]

    @pytest.mark.parametrize(
        ("below", "above", "expected"),
        [
            ("dog.n.01", "animal.n.01", True),
            ("dog.n.01", "domestic_animal.n.01", True),
            ("dog.n.01", "dog.n.01", False),
            ("animal.n.01", "dog.n.01", False),
            ("paris.n.01", "city.n.01", True),
            ("sprint.v.01", "run.v.01", True),
            ("frank.n.02", "animal.n.01", False),
            ("oak.n.02", "plant.n.02", True),
        ],
    )
    def test_known_relations(self, real, below, above, expected):
        assert bool(real.is_under(numbers(real, below), numbers(real, above))[0]) is expected

    def test_known_common_hypernyms(self, real):
        rows = torch.stack([numbers(real, "dog cat wolf"), numbers(real, "oak.n.02 elm tulip")])
        assert [real.name(i) for i in real.common_hypernyms(rows).tolist()] == ["carnivore.n.01", "vascular_plant.n.01"]

    def test_glosses_and_lemmas(self, real):
        dog = real.synsets[real.index("dog.n.01")]
        assert dog.lemmas == ("dog", "domestic_dog", "Canis_familiaris")
        assert entry_text(dog)[1].startswith(
            "dog: a member of the genus Canis (probably descended from the common wolf)"
        )
        assert real.synsets[real.index("galore.s.01")].lemmas == ("galore",)
        assert all(synset.gloss for synset in real.synsets)
        information = real.information
        assert information[real.index("dog.n.01")] > information[real.index("animal.n.01")] > 2


def test_permutations_of_a_small_bin_are_uniform():
    """The exact control above takes it that every pair of a bin is as likely to lend its parent."""
    from sae_lens_hsae.evaluation.wordnet.judge import _shuffled_within

    bins = torch.tensor([0, 1, 0, 1, 0])
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(_shuffled_within(bins, generator).tolist()) for _ in range(3000)]
    allowed = {
        (a, b, c, d, e) for a, c, e in itertools.permutations([0, 2, 4]) for b, d in itertools.permutations([1, 3])
    }
    counts = {permutation: drawn.count(permutation) for permutation in set(drawn)}
    assert set(counts) == allowed
    assert all(abs(count - 250) < 75 for count in counts.values())
