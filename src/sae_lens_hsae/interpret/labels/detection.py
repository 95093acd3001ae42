"""Held-out detection: do a label's words say where the feature fires, on contexts that the label was not made from?

It asks no language model. All it needs is in the dashboards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch

from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.labels.token_labels import N_WORDS, Used, label_words
from sae_lens_hsae.interpret.labels.words import NO_WORD, Words, words_of

N_STRETCHES = 16
FEATURES_AT_ONCE = 1024
REASONS = (
    "",
    "never fired",
    "all its contexts are in one half of the text",
    "no word stands out",
    "fires on every word that was held out",
)
"""Why a feature has no score; the first stands for one that has."""


@dataclass(frozen=True, eq=False)
class LabelDetection:
    """How well labels of words detect their features. All tensors are (n_features,).

    Attributes:
        score: balanced accuracy, ``(n_detected / n_firing + 1 − n_false_alarms / n_silent) / 2``; 1 is perfect, ½ is
            chance, NaN where ``reason`` is not 0.
        n_firing, n_detected: held-out words that the feature fires on; of those, in the label.
        n_silent, n_false_alarms: held-out words that it does not fire on; of those, in the label.
        reason: index into ``REASONS``.
    """

    score: torch.Tensor = field(repr=False)
    n_firing: torch.Tensor = field(repr=False)
    n_detected: torch.Tensor = field(repr=False)
    n_silent: torch.Tensor = field(repr=False)
    n_false_alarms: torch.Tensor = field(repr=False)
    reason: torch.Tensor = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row per feature."""
        names = ("score", "n_firing", "n_detected", "n_silent", "n_false_alarms")
        frame = pd.DataFrame({name: getattr(self, name).numpy() for name in names})
        frame["reason"] = [REASONS[each] for each in self.reason.tolist()]
        return frame.rename_axis("feature")


def label_detection(dashboards: Dashboards, text_of: Callable[[int], str]) -> LabelDetection:
    """Make each feature's label from one half of the text, and detect the feature with it in the other half.

    The text is cut into 16 stretches, which belong to the halves in turn, so that both hold all kinds of it and hardly
    any document is in both. A label is made as `token_labels` makes it, from the contexts of one half alone, the
    parent's and the background included. Then it is taken at its word: a word in the label is said to fire, any other
    is said to be silent; a word fires if one of its tokens does. It is tried on the kept windows of the other half,
    each context once: the strongest ones, those from across the range, and those where the parent fires without the
    feature. Then the halves change places, and the counts are added up.

    So it measures the labels of words, not those that a language model gives. A feature whose meaning is not in its
    words scores low, however clear it may be to a reader.
    """
    n_contexts = max(dashboards.n_contexts, 1)
    n_stretches = min(N_STRETCHES, n_contexts)

    def first_half(numbers: torch.Tensor) -> torch.Tensor:
        return numbers * n_stretches // n_contexts % 2 == 0

    def second_half(numbers: torch.Tensor) -> torch.Tensor:
        return ~first_half(numbers)

    words = words_of(dashboards, text_of)
    counts = torch.zeros(4, dashboards.n_features, dtype=torch.int64)
    n_held_out = torch.zeros(dashboards.n_features, dtype=torch.int64)
    n_labels = torch.zeros(dashboards.n_features, dtype=torch.int64)
    for used, held_out in ((first_half, second_half), (second_half, first_half)):
        labels = torch.full((dashboards.n_features, N_WORDS), NO_WORD, dtype=torch.int32)
        for feature, label in enumerate(label_words(dashboards, words, used)):
            labels[feature, : len(label)] = torch.tensor(label, dtype=torch.int32)
        for start in range(0, dashboards.n_features, FEATURES_AT_ONCE):
            own = slice(start, start + FEATURES_AT_ONCE)
            found, made_from = _counts(dashboards, words, own, labels[own], held_out)
            can = (found[0] > 0) & made_from
            n_held_out[own] += can
            can &= (labels[own] != NO_WORD).any(1)
            n_labels[own] += can
            counts[:, own] += found * can
    n_firing, n_detected, n_silent, n_false_alarms = counts
    reason = torch.zeros(dashboards.n_features, dtype=torch.uint8)
    reason[(n_labels > 0) & (n_silent == 0)] = 4
    reason[n_labels == 0] = 3
    reason[n_held_out == 0] = 2
    reason[dashboards.n_firing == 0] = 1
    score = (n_detected / n_firing.double() + 1 - n_false_alarms / n_silent.double()) / 2
    return LabelDetection(
        score=score.masked_fill(reason > 0, torch.nan),
        n_firing=n_firing,
        n_detected=n_detected,
        n_silent=n_silent,
        n_false_alarms=n_false_alarms,
        reason=reason,
    )


def _counts(
    dashboards: Dashboards, words: Words, own: slice, labels: torch.Tensor, held_out: Used
) -> tuple[torch.Tensor, torch.Tensor]:
    """(4, features) firing, detected, silent, false alarms; and whether the label had any context to be made from."""
    settings = dashboards.settings
    slots = slice(settings.kinds[2].stop)
    contexts, is_held_out = dashboards.distinct_contexts(own, slots), held_out(dashboards.context_numbers[own, slots])
    made_from = (contexts & ~is_held_out)[:, : settings.n_family_slots].any(1)
    found = words.numbers[own, slots]
    counts = (contexts & is_held_out)[..., None] & (found != NO_WORD)
    fires = words.activations[own, slots] > 0
    said = (found[..., None] == labels[:, None, None, :]).any(3)
    parts = (counts & fires, counts & fires & said, counts & ~fires, counts & ~fires & said)
    return torch.stack([part.sum((1, 2)) for part in parts]), made_from
