"""A tiny WordNet, and slow references for what is computed on it."""

import math
import random
from functools import cache

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from experiments.wordnet.database import NO_CONCEPT, Synset, WordNet
from experiments.wordnet.text import entry_text

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


def numbers(wordnet: WordNet, names: str) -> torch.Tensor:
    """Concepts by name, ``-`` for none; ending ``.n.01`` may be left out."""

    def one(name: str) -> int:
        if name == "-":
            return NO_CONCEPT
        return wordnet.index(name if "." in name or "(" in name else f"{name}.n.01")

    return torch.tensor([one(name) for name in names.split()])


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


def slow_common_hypernym(wordnet: WordNet, concepts: list[int]) -> int:
    given = [concept for concept in concepts if concept != NO_CONCEPT]
    over_all = frozenset(range(wordnet.n_concepts)).intersection(*(slow_ancestors(wordnet, each) for each in given))
    return max(over_all, key=lambda each: (round(slow_information(wordnet, each), 9), -each)) if given else NO_CONCEPT


def word_tokenizer(wordnet: WordNet) -> PreTrainedTokenizerFast:
    pre_tokenizer = Whitespace()
    texts = [entry_text(synset)[1] for synset in wordnet.synsets]
    words = sorted({word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text)})
    model = WordLevel({"[SEP]": 0, **{word: i for i, word in enumerate(words, start=1)}}, unk_token="[SEP]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer  # type: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
