"""Held-out detection against plain loops, and on features whose labels must pass or fail."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from planted import planted_dashboards
from small_saes import D_IN, make_sae

from sae_lens_hsae.interpret.feature_cache import Dashboards, DashboardSettings, collect_dashboards
from sae_lens_hsae.interpret.labels import label_detection
from sae_lens_hsae.interpret.labels.detection import REASONS
from sae_lens_hsae.interpret.labels.token_labels import label_words
from sae_lens_hsae.interpret.labels.words import words_of

VOCABULARY = 30
TEXTS = [
    f" {'ABCDEFGHIJ'[i % 10]}{i // 20}" if i % 3 else f"{'abcdefghij'[i % 10]}{i // 20}" for i in range(VOCABULARY)
]
N_CONTEXTS = 40


def in_first_half(number: int, n_contexts: int = N_CONTEXTS) -> bool:
    return number * 16 // n_contexts % 2 == 0


@pytest.fixture(scope="module")
def dashboards() -> Dashboards:
    sae = make_sae(seed=5)
    sae.threshold.data[-1] = 1e9
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (N_CONTEXTS, 11), generator=generator)
    x = torch.randn(VOCABULARY, D_IN, generator=generator)[tokens] * 2
    x += torch.randn(N_CONTEXTS, 11, D_IN, generator=generator)
    settings = DashboardSettings(n_top=5, n_sampled=4, n_counterexamples=2, window=7)
    return collect_dashboards(sae, sae.forest, [(tokens, x)], settings=settings, progress=False)


def without(dashboards: Dashboards, first_half: bool) -> Dashboards:
    """As if the contexts of one half had never been kept."""
    gone = torch.tensor([[in_first_half(n) == first_half for n in row] for row in dashboards.context_numbers.tolist()])
    return replace(
        dashboards,
        context_numbers=dashboards.context_numbers.masked_fill(gone, -1),
        token_ids=dashboards.token_ids.masked_fill(gone[..., None], -1),
        activations=dashboards.activations.masked_fill(gone[..., None], 0),
    )


def test_counts_and_score_equal_plain_loops(dashboards):
    found = label_detection(dashboards, TEXTS.__getitem__)
    expected: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for held_out_first in (True, False):
        made_from, held_out = (without(dashboards, first) for first in (held_out_first, not held_out_first))
        labels = label_words(made_from, words_of(made_from, TEXTS.__getitem__))
        words = words_of(held_out, TEXTS.__getitem__)
        own_texts = words_of(made_from, TEXTS.__getitem__).texts
        for feature in range(dashboards.n_features):
            label = {own_texts[number].casefold() for number in labels[feature]}
            counts, seen = [0, 0, 0, 0], {-1}
            for slot in range(5 + 4 + 2):
                number = int(held_out.context_numbers[feature, slot])
                if number in seen:
                    continue
                seen.add(number)
                of_slot = words.activations[feature, slot].tolist(), words.numbers[feature, slot].tolist()
                for act, word in zip(*of_slot, strict=True):
                    if word < 0:
                        continue
                    said = words.texts[word].casefold() in label
                    counts[0] += act > 0
                    counts[1] += act > 0 and said
                    counts[2] += act == 0
                    counts[3] += act == 0 and said
            if label and counts[0]:
                expected[feature] = [a + b for a, b in zip(expected[feature], counts, strict=True)]
    names = ("n_firing", "n_detected", "n_silent", "n_false_alarms")
    for feature in range(dashboards.n_features):
        assert [int(getattr(found, name)[feature]) for name in names] == expected[feature], feature
        n_firing, n_detected, n_silent, n_false = expected[feature]
        if n_firing and n_silent:
            score = (n_detected / n_firing + 1 - n_false / n_silent) / 2
            assert found.score[feature].item() == pytest.approx(score)
            assert found.reason[feature] == 0
        else:
            assert found.score[feature].isnan()
            assert found.reason[feature] > 0
    assert (found.score > 0.6).any()
    assert REASONS[found.reason[-1]] == "never fired"
    frame = found.to_frame()
    assert frame.loc[32, "reason"] == "never fired"
    assert frame.loc[0, "score"] == found.score[0]


def test_a_label_passes_only_on_what_it_was_not_made_from():
    """Feature 1 fires on token 3 everywhere; 2 on token 4 in one half of the text and on 5 in the other."""
    contexts = [[0, 3, 4 if in_first_half(i, 32) else 5, 6] for i in range(32)]
    found = label_detection(planted_dashboards({1: (3,), 2: (4, 5)}, contexts=contexts), "zabcdefg".__getitem__)
    assert found.score[1] == 1
    assert found.n_firing[2] > 0
    assert found.n_detected[2] == 0
    assert found.score[2] == 0.5


def test_a_childs_label_is_tried_where_its_parent_fires_alone():
    """Token 2 is the child's, token 1 its parent's as well; the child's label must not name token 1."""
    contexts = [[0, 1, 6, 7] if i % 3 else [0, 2, 6, 7] for i in range(96)]
    dashboards = planted_dashboards({0: (1, 2), 4: (2,)}, {4: 0}, contexts)
    found = label_detection(dashboards, "zabcdefg".__getitem__)
    assert found.score[4] == 1
    n_own = int((dashboards.context_numbers[4, :14].unique() >= 0).sum())
    assert found.n_silent[4] == 3 * n_own + 4 * 2, "two kept contexts of the parent alone"


def test_where_there_is_no_score_it_says_why():
    contexts = [[0, 0, 1, 1] if i else [0, 1, 2, 2] for i in range(32)]
    fires_on = {0: (2,), 1: (0, 1, 2), 2: (1,), 3: ()}
    found = label_detection(planted_dashboards(fires_on, contexts=contexts), ["", " ", "b", *"cdefg"].__getitem__)
    reasons = [REASONS[each] for each in found.reason.tolist()]
    assert reasons[0] == "all its contexts are in one half of the text"
    assert reasons[2] == "no word stands out"
    assert reasons[3] == "never fired"
    assert found.score[[0, 2, 3]].isnan().all()
    everywhere = planted_dashboards({1: (1, 2)}, contexts=[[1, 1, 2, 1]] * 16 + [[3, 3, 3, 3]] * 16)
    silent = label_detection(everywhere, "zabcdefg".__getitem__)
    assert REASONS[silent.reason[1]] == "fires on every word that was held out"
    assert silent.n_silent[1] == 0


@pytest.mark.parametrize("n_contexts", [2, 3, 4, 8, 16])
def test_few_contexts_are_in_both_halves(n_contexts):
    sae = make_sae(seed=5)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (n_contexts, 60), generator=generator)
    x = torch.randn(n_contexts, 60, D_IN, generator=generator)
    found = label_detection(
        collect_dashboards(sae, sae.forest, [(tokens, x)], settings=DashboardSettings(window=30), progress=False),
        TEXTS.__getitem__,
    )
    assert not found.score.isnan().all()
