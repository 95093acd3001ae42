"""Behaviours that a small causal model may have, as pairs of prompts; every list holds both sides of its contrast."""

from __future__ import annotations

from itertools import cycle, pairwise, permutations
from typing import Any

from sae_lens_hsae.interpret.circuits import Pair

NOUNS = ("key", "dog", "car", "book", "boy", "girl", "teacher", "friend", "tree", "house", "letter", "window")
ATTRACTORS = ("the cabinet", "the gardens", "the door", "the rivers", "the table", "the walls")
MEN = ("John", "James", "Robert", "Michael", "David", "Peter", "Paul", "Thomas")
WOMEN = ("Mary", "Anna", "Sarah", "Emma", "Laura", "Alice", "Jane", "Lisa")
DEEDS = ("was late because", "went home because", "smiled when", "was tired and said that")
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "England": "London",
    "Egypt": "Cairo",
    "Ireland": "Dublin",
    "China": "Beijing",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "left": "right",
    "open": "closed",
    "good": "bad",
    "fast": "slow",
    "rich": "poor",
    "old": "young",
    "hard": "soft",
    "true": "false",
    "early": "late",
}
QUOTED = ("yes", "no", "love", "time", "hello", "peace", "home", "cat", "work", "truth")
YEARS = ("The war lasted from the year", "The reign lasted from the year", "The plague lasted from the year")
BRACKETED = ("see page", "as in chapter", "shown in figure", "given in table", "compare note")


def _agreement() -> list[Pair]:
    pairs = []
    for noun, attractor in zip(NOUNS, cycle(ATTRACTORS), strict=False):
        one, many = (f"The {word} near {attractor}" for word in (noun, f"{noun}s"))
        pairs += [Pair(one, " is", " are", many), Pair(many, " are", " is", one)]
    return pairs


def _pronouns() -> list[Pair]:
    pairs = []
    for man, woman, deed in zip(MEN, WOMEN, cycle(DEEDS), strict=False):
        he, she = f"{man} {deed}", f"{woman} {deed}"
        pairs += [Pair(he, " he", " she", she), Pair(she, " she", " he", he)]
    return pairs


def _looked_up(prompt: str, table: dict[str, str]) -> list[Pair]:
    keys = list(table)
    return [
        Pair(prompt.format(key), f" {table[key]}", f" {table[other]}", prompt.format(other))
        for shift in (1, 3)
        for key, other in zip(keys, keys[shift:] + keys[:shift], strict=True)
    ]


def _quotes() -> list[Pair]:
    pairs = []
    for word in QUOTED:
        double, single = f'The word "{word}', f"The word '{word}"
        pairs += [Pair(double, '"', "'", single), Pair(single, "'", '"', double)]
    return pairs


def _brackets() -> list[Pair]:
    pairs = []
    for words, number in zip(BRACKETED * 2, range(2, 12), strict=True):
        round_, square = f"This is known ({words} {number % 10}", f"This is known [{words} {number % 10}"
        pairs += [Pair(round_, ")", "]", square), Pair(square, "]", ")", round_)]
    return pairs


def _greater() -> list[Pair]:
    """Decades after the first year against decades before it; from an early first year both are possible."""
    return [
        Pair(f"{words} 17{late}4 to the year 17", str(late + 1), str(late - 2), f"{words} 17{late - 3}4 to the year 17")
        for words in YEARS
        for late in (4, 5, 6, 7)
    ]


def _months() -> list[Pair]:
    months = ("January", "February", "March", "April", "May", "June", "July", "August")
    named = list(pairwise(months))
    return [
        Pair(f"The month after {month} is", f" {after}", f" {other_after}", f"The month after {other} is")
        for (month, after), (other, other_after) in permutations(named, 2)
        if after != other
    ][::3]


BEHAVIOURS = {
    "capital of a country": lambda: _looked_up("The capital of {} is", CAPITALS),
    "opposite of a word": lambda: _looked_up("The opposite of {} is", OPPOSITES),
    "closing quotation mark": _quotes,
    "next month": _months,
    "subject–verb agreement, attractor between": _agreement,
    "pronoun by first name": _pronouns,
    "closing bracket": _brackets,
    "later year": _greater,
}
"""Functions that give a behaviour's pairs, by name."""


def usable(pairs: list[Pair], tokenizer: Any, at_most: int) -> list[Pair]:
    """Those whose prompts are of equal length and whose answers are of one token: evenly spread, at most this many."""

    def length(text: str | None) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    fits = [
        pair
        for pair in pairs
        if length(pair.clean) == length(pair.patch) and length(pair.answer) == length(pair.foil) == 1
    ]
    return [fits[i * len(fits) // at_most] for i in range(at_most)] if len(fits) > at_most else fits
