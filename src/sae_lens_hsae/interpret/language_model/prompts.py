"""What a language model is shown: contexts with marked tokens, and the questions."""

from __future__ import annotations

from collections.abc import Callable

from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.text.token_text import joined_characters

MARKED_FROM = 0.3
"""A token is marked if the feature's activation on it is at least this share of the context's highest."""

N_STRONGEST, N_SAMPLED = 10, 5
"""Contexts of a feature that are shown, at most."""

NAME = """You name features of a neural network. You are shown pieces of text on which a feature is active; the tokens \
on which it is active stand in «these marks». Say in at most eight words what these tokens, in their contexts, have in \
common. If a broader feature is given, name what is particular to this one within it, and what sets it apart from its \
siblings. Answer with a JSON object and nothing else: {"label": "..."}"""

JUDGE = """You compare two features of a neural network. For each you are shown pieces of text on which it is active; \
the tokens on which it is active stand in «these marks». Say how what feature B stands for relates to what feature A \
stands for. "refines": B is a part, a kind or an aspect of A, and narrower. "same": both are about one thing, but B \
repeats A, stands beside it or is broader. "none": no relation that one can name without inventing a story. Answer \
with a JSON object and nothing else: {"relation": "refines", "same" or "none", "confidence": a number from 0 to 1}"""


def contexts(dashboards: Dashboards, feature: int, text_of: Callable[[int], str]) -> list[str]:
    """A feature's contexts as text, the strongest and then those from across the range, as far as they are kept."""
    top, sampled = dashboards.settings.kinds[:2]
    wanted = [*range(top.start, top.stop)[:N_STRONGEST], *range(sampled.start, sampled.stop)[:N_SAMPLED]]
    shown: dict[int, str] = {}
    for slot in wanted:
        number = int(dashboards.context_numbers[feature, slot])
        if number >= 0 and number not in shown:
            acts = dashboards.activations[feature, slot].float()
            tokens = dashboards.token_ids[feature, slot].tolist()
            marks = (acts >= MARKED_FROM * acts.max()).tolist()
            shown[number] = marked([text_of(id_) for id_ in tokens if id_ >= 0], marks)
    return list(shown.values())


def marked(texts: list[str], marks: list[bool]) -> str:
    """Consecutive tokens' texts on one line, runs of marked ones between « and », with the space before a word outside.

    Of a character that is split over tokens it is enough that one is marked.
    """
    line, inside = "", False
    for tokens, text in joined_characters(texts):
        mark = any(marks[tokens])
        if inside and not mark:
            line += "»"
        if mark and not inside:
            line += text[: len(text) - len(text.lstrip())] + "«" + text.lstrip()
        else:
            line += text
        inside = mark
    return " ".join((line + "»" * inside).split())


def listed(heading: str, lines: list[str]) -> str:
    return "\n".join([heading, *(f"{i}. {line}" for i, line in enumerate(lines, start=1))])
