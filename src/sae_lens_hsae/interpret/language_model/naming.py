"""Labels from a language model, top-down: a child is named knowing its parent's label and its siblings' tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.language_model.endpoint import Endpoint, Replies, Request
from sae_lens_hsae.interpret.language_model.prompts import NAME, contexts, listed

MAX_SIBLINGS = 8
MAX_CHARACTERS = 100


def label_requests(
    dashboards: Dashboards,
    features: list[int],
    text_of: Callable[[int], str],
    labels: Mapping[int, str],
    by_tokens: Mapping[int, str],
) -> list[Request]:
    """A question for each feature, with its parent's label and its siblings' distinctive tokens."""
    forest = dashboards.forest
    requests = []
    for feature in features:
        parts = []
        parent = forest.parent(feature)
        if parent is not None:
            parts.append(f"The broader feature: {labels.get(parent) or by_tokens.get(parent, 'not named')}")
        siblings = [by_tokens[other] for other in forest.siblings(feature) if other in by_tokens][:MAX_SIBLINGS]
        if siblings:
            parts.append(listed("Its other special cases are active on:", siblings))
        parts.append(listed("This feature is active on:", contexts(dashboards, feature, text_of)))
        requests.append(Request(NAME, "\n\n".join(parts)))
    return requests


def label_features(
    dashboards: Dashboards, text_of: Callable[[int], str], endpoint: Endpoint
) -> tuple[dict[int, str], list[Replies]]:
    """Name every feature that ever fired, level after level.

    Returns:
        The label of every feature that got one, by flat index, and the replies per level.
    """
    by_tokens = token_labels(dashboards, text_of)
    labels: dict[int, str] = {}
    replies = []
    for level, features in enumerate(firing_by_level(dashboards)):
        requests = label_requests(dashboards, features, text_of, labels, by_tokens)
        found = endpoint.ask(requests, parse_label, f"Level {level}")
        labels |= {feature: label for feature, label in zip(features, found.answers, strict=True) if label is not None}
        replies.append(found)
    return labels, replies


def firing_by_level(dashboards: Dashboards) -> list[list[int]]:
    """The features of each level that ever fired."""
    firing = dashboards.n_firing > 0
    return [(firing[own].nonzero().flatten() + own.start).tolist() for own in dashboards.forest.levels]


def parse_label(answer: dict[str, Any]) -> str:
    """The label of an answer, on one line; a ValueError if it is none."""
    label = answer["label"]
    if not isinstance(label, str) or not label.strip() or len(label) > MAX_CHARACTERS:
        raise ValueError(f"label must be 1 to {MAX_CHARACTERS} characters of text")
    return " ".join(label.split())
