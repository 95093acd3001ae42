"""A word amid its text, on one line."""

from __future__ import annotations

from collections.abc import Sequence

from sae_lens_hsae.interpret.labels.words import in_one_word
from sae_lens_hsae.text.token_text import joined_characters

AROUND = 40
"""Most characters before the word, and as many after it."""


def snippet(texts: Sequence[str], place: int) -> str:
    """The word at ``place`` among tokens' texts (`TokenTexts`), between « and », and what stands around it."""
    pieces = joined_characters(texts)
    first = last = next(i for i, (tokens, _) in enumerate(pieces) if place < tokens.stop)
    texts = [text for _, text in pieces]
    while first > 0 and in_one_word(texts[first - 1], texts[first]):
        first -= 1
    while last + 1 < len(texts) and in_one_word(texts[last], texts[last + 1]):
        last += 1
    before, word, after = ("".join(part) for part in (texts[:first], texts[first : last + 1], texts[last + 1 :]))
    marked = word.strip() or word  # where a space is all there is
    lead = word[: word.index(marked)]
    before, after = _one_line(before + lead), _one_line(after)
    # At whole words, where spaces part words.
    if len(before) > AROUND:
        before = before[-AROUND:]
        before = "…" + before[before.find(" ", 0, AROUND // 2) + 1 :]
    if len(after) > AROUND:
        after = after[:AROUND]
        space = after.rfind(" ", AROUND // 2)
        after = (after if space < 0 else after[:space]) + "…"
    return f"{before}«{_one_line(marked)}»{after}".strip()


def _one_line(text: str) -> str:
    """Text with every stretch of space as one space."""
    words = " ".join(text.split())
    return (" " if text[:1].isspace() else "") + words + (" " if words and text[-1:].isspace() else "")
