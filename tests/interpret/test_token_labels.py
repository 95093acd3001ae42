"""Labels of words against a slow plain reference, on planted families, and with every kind of tokenizer."""

import json
import math
from collections import Counter
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from planted import planted_dashboards, planted_sae
from small_saes import D_IN, make_sae
from tokenizer_kinds import KINDS

from sae_lens_hsae import FeatureForest
from sae_lens_hsae.interpret.feature_cache import Dashboards, DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.labels import read_labels, token_labels
from sae_lens_hsae.interpret.labels.files import by_feature
from sae_lens_hsae.interpret.labels.token_labels import label_words
from sae_lens_hsae.interpret.labels.words import NO_WORD, in_one_word, words_of
from sae_lens_hsae.text.token_text import TokenTexts

MODULE = import_module("sae_lens_hsae.interpret.labels.token_labels")

VOCABULARY = 30
TEXTS = [f" {'abcdefghij'[i % 10]}{i // 10}" if i % 4 else f"x{i}" for i in range(VOCABULARY)]
"""Every fourth token goes on with the word before it."""


@pytest.fixture(scope="module")
def dashboards() -> Dashboards:
    sae = make_sae(seed=5)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (40, 11), generator=generator)
    x = torch.randn(VOCABULARY, D_IN, generator=generator)[tokens] * 2 + torch.randn(40, 11, D_IN, generator=generator)
    settings = DashboardSettings(n_top=3, n_sampled=3, n_counterexamples=2, window=7)
    return collect_dashboards(sae, sae.forest, [(tokens, x)], settings=settings, exclude_tokens=[0], progress=False)


def words_in(tokens: list[int], acts: list[float]) -> list[tuple[str, float]]:
    """The words of a window and the feature's activation on each, without those that its edges may cut."""
    words: list[tuple[str, float]] = []
    for token, act in zip(tokens, acts, strict=True):
        if TEXTS[token].startswith(" ") or not words:
            words.append((TEXTS[token], act))
        else:
            words[-1] = (words[-1][0] + TEXTS[token], max(words[-1][1], act))
    return [(word.strip(), act) for word, act in words[:-1] if word.startswith(" ")]


@pytest.mark.parametrize("pieces", [("ह", "िन्", "दी"), ("ש", "ָ", "לו", "ֹ", "ם"), ("cafe", "\u0301", "s")])
def test_a_mark_belongs_to_its_letter(pieces):
    assert all(in_one_word(*pair) for pair in pairwise(pieces))
    assert not in_one_word(pieces[0], " " + pieces[1])


def test_windows_are_cut_into_words(dashboards):
    words = words_of(dashboards, TEXTS.__getitem__)
    n_of_several = 0
    for feature in range(dashboards.n_features):
        for slot in range(dashboards.settings.n_slots):
            tokens = dashboards.token_ids[feature, slot].tolist()
            if tokens[0] < 0:
                continue
            found = [
                (number, act)
                for number, act in zip(
                    words.numbers[feature, slot].tolist(), words.activations[feature, slot].tolist(), strict=True
                )
                if number != NO_WORD
            ]
            expected = words_in(tokens, dashboards.activations[feature, slot].tolist())
            assert [(words.texts[number], act) for number, act in found] == expected
            n_of_several += sum(len(word) > 2 for word, _ in expected)
    assert n_of_several > 100


def statistics(dashboards: Dashboards, feature: int) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Each word's occurrences, activation and share."""
    seen, contexts = set(), []
    for slot in range(dashboards.settings.n_family_slots):
        number = int(dashboards.context_numbers[feature, slot])
        if number >= 0 and number not in seen:
            contexts.append(
                words_in(dashboards.token_ids[feature, slot].tolist(), dashboards.activations[feature, slot].tolist())
            )
            seen.add(number)
    peaks = [max((act for _, act in context), default=0) for context in contexts]
    n, total, share = Counter(), Counter(), Counter()
    for context, peak in zip(contexts, peaks, strict=True):
        for word, act in context:
            n[word] += 1
            total[word] += act
            if act:
                share[word] += act / sum(each for _, each in context) * peak / sum(peaks)
    return n, total, share


@pytest.mark.parametrize("n_words", [2, 3])
def test_labels_equal_the_formula(dashboards, n_words, monkeypatch):
    monkeypatch.setattr(MODULE, "N_WORDS", n_words)
    words = words_of(dashboards, TEXTS.__getitem__)
    of_all = [statistics(dashboards, feature) for feature in range(dashboards.n_features)]
    seen = sum((n for n, _, _ in of_all), Counter())
    labels = [[words.texts[number] for number in label] for label in label_words(dashboards, words)]
    n_apart = 0
    for feature, parent in enumerate(dashboards.parents.tolist()):
        n, total, share = of_all[feature]
        strength = {word: total[word] / (n[word] + 2) for word in n if total[word]}
        ranked = sorted(strength, key=lambda word: (-strength[word], words.texts.index(word)))
        best = [word for word in ranked if strength[word] >= 0.3 * strength[ranked[0]]]
        label = labels[feature]
        assert label[: n_words - 1] == best[: n_words - 1]
        if parent >= 0 and share:
            above = of_all[parent][2]
            apart = {word: p * math.log(p / max(above[word], seen[word] / seen.total())) for word, p in share.items()}
            word = max(apart, key=lambda word: apart[word])
            if apart[word] > 0.1 and word not in best[:n_words]:
                best = [*best[: n_words - 1], word]
                n_apart += 1
        assert label == best[:n_words]
    assert n_apart > 1, "the parent matters for some"


def test_the_strongest_words_come_first_and_what_sets_apart_last(monkeypatch):
    texts = ["", " Science", " biology", " Iron", " cell", " x", " y", " z"]
    strengths = {0: {1: 3.0, 3: 2.0}, 4: {1: 3.0, 3: 2.95, 4: 2.9}, 1: {3: 1.0}, 5: {3: 1.0}}
    labels = token_labels(planted_dashboards(strengths, {4: 0, 5: 1}), texts.__getitem__)
    assert labels == {0: "Science · Iron", 4: "Science · Iron · cell", 1: "Iron", 5: "Iron"}
    monkeypatch.setattr(MODULE, "N_WORDS", 2)
    labels = token_labels(planted_dashboards(strengths, {4: 0, 5: 1}), texts.__getitem__)
    assert labels[4] == "Science · cell"
    assert token_labels(planted_dashboards(strengths), texts.__getitem__)[4] == "Science · Iron", "without a parent"


def test_a_copy_is_called_as_its_parent(monkeypatch):
    """What falls a little unlike on words by chance is no difference."""
    monkeypatch.setattr(MODULE, "N_WORDS", 2)
    strengths = {1: 3.0, 2: 2.0, 3: 1.0}
    data = planted_dashboards({0: strengths, 4: strengths | {2: 2.05}}, {4: 0})
    labels = token_labels(data, ["", " a", " b", " c", *[""] * 4].__getitem__)
    assert labels[4] == labels[0] == "a · b"


def test_words_that_look_alike_count_once_and_space_not_at_all():
    data = planted_dashboards({0: {1: 1.0, 2: 1.0}, 1: {3: 1.0}})
    assert token_labels(data, ["", " Cat", " cat", " \n", *[""] * 4].__getitem__) == {0: "Cat"}


@pytest.mark.parametrize(
    ("kind", "ids", "expected"),
    [
        ("WordPiece", [3, 1, 2, 4], ["a", "walking", "."]),
        ("byte-level with ##", [2, 9, 7, 3, 9, 5, 2], ["isa", "naïve", "##", "a", "", "is"]),
        ("Unigram", [1, 2, 1], ["walking", "walk"]),
        ("byte fallback", [1, 2, 5, 1], ["walkinga", "walk"]),
    ],
)
def test_a_word_in_pieces_is_shown_whole(kind, ids, expected):
    sae, _ = planted_sae({0: (0,)})
    x = torch.arange(1.0, len(ids) + 1)[None, :, None] * torch.eye(D_IN)[0]
    settings = DashboardSettings(window=80)
    data = collect_dashboards(sae, sae.forest, [(torch.tensor([ids]), x)], settings=settings, progress=False)
    words = words_of(data, TokenTexts(KINDS[kind][0]).__getitem__)
    assert [words.texts[n] for n in words.numbers[0, 0].tolist() if n >= 0] == expected


def test_where_no_space_is_known_a_token_is_a_word():
    data = planted_dashboards({0: {1: 1.0, 2: 1.0}})
    assert token_labels(data, "zabcdefg".__getitem__) == {0: "a · b"}
    chinese = [" x", "科", "学", *[" y"] * 5]
    assert token_labels(data, chinese.__getitem__) == {0: "科 · 学"}


def test_labels_are_read_by_index_in_numbers_or_words_and_by_name(tmp_path):
    forest = make_sae(d_in=D_IN).forest
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"12": "dates", "2/3": "rivers", "weights": "of a run"}))
    assert read_labels(path, forest) == {12: "dates", 16: "rivers"}
    assert by_feature({12: "dates", "2/3": "rivers"}, forest.index) == {12: "dates", 16: "rivers"}
    assert by_feature(None, forest.index) == {}
    with pytest.raises(ValueError, match=r"labels\.json' are for other weights"):
        read_labels(path, FeatureForest([-1], [1]), lambda: "of another run")
    for key, message in {
        "33": "feature 33 does not exist",
        "2/20": "feature 20 is not in level 2",
        "dates": "feature 'dates' is no name",
    }.items():
        path.write_text(json.dumps({key: "x"}))
        with pytest.raises(ValueError, match=rf"labels\.json' is not a JSON object .*{message}"):
            read_labels(path, forest)
    wrong: Any = ((None, "None is no feature"), (1, "7 of feature 1 is no text"), (33, "feature 33 does not exist"))
    label: Any = 7
    for feature, message in wrong:
        with pytest.raises(ValueError, match=f"^labels: {message}"):
            by_feature({feature: label}, forest.index)
