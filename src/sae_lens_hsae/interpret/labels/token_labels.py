"""Labels from what stands in a feature's contexts: its strongest words, and what sets it apart from its parent.

They ask no language model. All they need is in the dashboards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array

from sae_lens_hsae.forest import NO_PARENT
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.labels.words import BLANK, Words, words_of

SEPARATOR = " · "
N_WORDS = 4
"""Words of a label, at most."""
MIN_OF_BEST = 0.3
"""A word belongs in the label if it is at least this share as strong as the strongest."""
MIN_DIFFERENCE = 0.1
"""Nats: a word that sets a feature apart by less is noise, as between a feature and its copy one level down."""
FEATURES_AT_ONCE = 4096
Used = Callable[[torch.Tensor], torch.Tensor]
"""Context numbers → whether they may be looked at, a bool of the same shape."""


def token_labels(dashboards: Dashboards, text_of: Callable[[int], str]) -> dict[int, str]:
    """A label for every feature that fires on words, joined: see `label_words`.

    Returns:
        Label by flat feature index; none for a feature of which nothing can be said.
    """
    words = words_of(dashboards, text_of)
    found = label_words(dashboards, words)
    return {
        feature: SEPARATOR.join(words.texts[number] for number in label) for feature, label in enumerate(found) if label
    }


def label_words(dashboards: Dashboards, words: Words, used: Used | None = None) -> list[list[int]]:
    """The words of each feature's label: the strongest first, and last what most sets it apart from its parent.

    How strong a feature is on a word is its activation summed over the word's n occurrences in the strongest contexts
    and those from across the range, each context once, over n + 2: so one lucky occurrence counts a third.

    With p(w) the share of the feature's activation that falls on word w, averaged over these contexts in proportion to
    their peaks, p'(w) the same for its parent, and q(w) the word's share of all of them, a word sets the feature apart
    by p(w) · log(p(w) / max(p'(w), q(w))), its part of the divergence from whichever of the two makes it less
    surprising. The word of which that is most takes the last place, if it is more than `MIN_DIFFERENCE` and the word is
    not among the others.

    ``used`` says which contexts may be looked at. Words are given as numbers of ``words.texts``.
    """
    rows = list(_rows(dashboards, words, used))
    seen = np.zeros(len(words.texts))
    for row in rows:
        np.add.at(seen, row.words, row.occurrences)
    background = seen / max(seen.sum(), 1)
    labels = []
    for row, parent in zip(rows, dashboards.parents.tolist(), strict=True):
        strength = row.total / (row.occurrences + 2)
        order = np.lexsort((row.words, -strength))
        order = order[strength[order] >= max(MIN_OF_BEST * strength.max(initial=0), np.finfo(float).tiny)]
        label = row.words[order[:N_WORDS]].tolist()
        if parent != NO_PARENT:
            apart = _apart(row, rows[parent], background)
            best = np.argmax(apart) if len(apart) else 0
            if len(apart) and apart[best] > MIN_DIFFERENCE and row.words[best] not in label:
                label = [*label[: N_WORDS - 1], int(row.words[best])]
        labels.append(label)
    return labels


class _Row(NamedTuple):
    """Of one feature: the words of its contexts, ascending; each one's occurrences, activation, and share p(w)."""

    words: np.ndarray
    occurrences: np.ndarray
    total: np.ndarray
    shares: np.ndarray


def _apart(row: _Row, above: _Row, background: np.ndarray) -> np.ndarray:
    """What each word of a feature's contexts sets it apart by from its parent; see `label_words`."""
    reference = background[row.words]
    _, here, there = np.intersect1d(row.words, above.words, assume_unique=True, return_indices=True)
    reference[here] = np.maximum(reference[here], above.shares[there])
    fires = row.shares > 0
    apart = np.zeros(len(row.words))
    apart[fires] = row.shares[fires] * np.log(row.shares[fires] / reference[fires])
    return apart


def _rows(dashboards: Dashboards, words: Words, used: Used | None) -> Iterator[_Row]:
    slots = slice(dashboards.settings.n_family_slots)
    for start in range(0, dashboards.n_features, FEATURES_AT_ONCE):
        own = slice(start, start + FEATURES_AT_ONCE)
        counts = dashboards.distinct_contexts(own, slots)
        if used is not None:
            counts &= used(dashboards.context_numbers[own, slots])
        numbers = words.numbers[own, slots]
        there = (numbers > BLANK) & counts[..., None]
        acts = words.activations[own, slots].double() * there
        peaks = acts.amax(2, keepdim=True)
        tiny = torch.finfo(torch.float64).tiny
        shares = acts / acts.sum(2, keepdim=True).clamp(min=tiny) * peaks / peaks.sum(1, keepdim=True).clamp(min=tiny)

        feature, slot, place = there.nonzero(as_tuple=True)
        at = (feature.numpy(), numbers[feature, slot, place].numpy())
        shape = (len(numbers), len(words.texts))

        entries = (feature, slot, place)
        # Turned into rows, entries of one word add up.
        occurrences, total, of_all = (
            coo_array((values[entries].numpy(), at), shape=shape).tocsr() for values in (there.double(), acts, shares)
        )
        for i in range(len(numbers)):
            row = slice(*occurrences.indptr[i : i + 2])
            yield _Row(occurrences.indices[row], *(each.data[row] for each in (occurrences, total, of_all)))
