"""The windows of the dashboards as words: the pieces that a tokenizer makes of a word are put together again."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.text.token_text import BYTE, whole_characters

NO_WORD = -1
BLANK = 0
FEATURES_AT_ONCE = 1024
MAX_CHARACTERS = 32
WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts, as Unicode's names of characters begin, whose words no space parts; there a token is a word."""


@dataclass(frozen=True, eq=False)
class Words:
    """What stands in the windows that the dashboards keep, word by word.

    A window's words stand from its first place on, with `BLANK` for nothing but space and `NO_WORD` where there are no
    more. Words that differ in case are one, shown as it is written most often.
    """

    numbers: torch.Tensor  # (features, slots, window) int32, places in ``texts``
    activations: torch.Tensor  # the same shape, float32: of the feature on the word, the highest of its pieces
    texts: tuple[str, ...]


def words_of(dashboards: Dashboards, text_of: Callable[[int], str]) -> Words:
    """Put the tokens of all windows together to words, from their texts amid other text (`TokenTexts`).

    Two tokens belong to one word if no space stands between them and letters or digits meet where they do. It asks the
    texts of the tokens alone, so it does not matter how a tokenizer marks the pieces of a word; where no token has a
    space before it each is a word. A word that the edge of a window may cut is left out.
    """
    ids = dashboards.token_ids
    used = ids[ids >= 0].unique().tolist()
    texts = {id_: text_of(id_) for id_ in used}
    opens, closes = (torch.zeros((used or [0])[-1] + 1, dtype=torch.bool) for _ in range(2))
    if any(text[:1].isspace() for text in texts.values()):
        for id_, text in texts.items():
            opens[id_], closes[id_] = _is_letter(text), _is_letter(text, last=True)

    names = _Names(texts)
    parts = zip(ids.split(FEATURES_AT_ONCE), dashboards.activations.split(FEATURES_AT_ONCE), strict=True)
    blocks = [_block(of_part, acts.float(), opens, closes, names) for of_part, acts in parts]
    form_of, shown = names.forms()
    numbers, activations = (torch.cat(each) for each in zip(*blocks, strict=True))
    return Words(torch.where(numbers < 0, NO_WORD, form_of[numbers.clamp(min=0)]), activations, shown)


def in_one_word(before: str, after: str) -> bool:
    """Whether the texts of two tokens, one after the other, belong to one word."""
    return _is_letter(before, last=True) and _is_letter(after)


class _Names:
    """Numbers of the words as they are written, given out as they are met, and how often each was."""

    def __init__(self, texts: dict[int, str]) -> None:
        self._texts = texts
        self._number_of: dict[str, int] = {"": BLANK}
        self._known: dict[tuple[int, ...], int] = {}
        self._counts: Counter[int] = Counter()

    def numbers(self, words: Sequence[tuple[int, ...]]) -> list[int]:
        """Of words given as token ids."""
        found = [self._known[word] if word in self._known else self._met(word) for word in words]
        self._counts.update(found)
        return found

    def _met(self, word: tuple[int, ...]) -> int:
        text = whole_characters(["".join(self._texts[id_] for id_ in word)])[0].strip()
        text = text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
        self._known[word] = self._number_of.setdefault(text, len(self._number_of))
        return self._known[word]

    def forms(self) -> tuple[torch.Tensor, tuple[str, ...]]:
        """For each number that of its form, in which case is left out; and each form as it is written most often."""
        numbers: dict[str, int] = {"": BLANK}
        form_of = [numbers.setdefault(text.strip().casefold(), len(numbers)) for text in self._number_of]
        shown, most = [""] * len(numbers), [-1] * len(numbers)
        for (text, number), form in zip(self._number_of.items(), form_of, strict=True):
            if self._counts[number] > most[form]:
                shown[form], most[form] = text, self._counts[number]
        return torch.tensor(form_of, dtype=torch.int32), tuple(shown)


def _block(
    ids: torch.Tensor, activations: torch.Tensor, opens: torch.Tensor, closes: torch.Tensor, names: _Names
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and activations of the words of some features' windows, both (features, slots, window)."""
    there, known = ids >= 0, ids.clamp(min=0).long()
    opens, closes = opens[known] & there, closes[known] & there
    begins = there.clone()
    begins[..., 1:] &= ~(opens[..., 1:] & closes[..., :-1])
    place = (begins.cumsum(-1) - 1).clamp(min=0)  # of a token's word in the window
    found = torch.zeros_like(activations).scatter_reduce_(-1, place, activations * there, "amax")

    tokens, firsts = ids[there].tolist(), begins[there].nonzero().flatten().tolist()
    words = [tuple(tokens[start:stop]) for start, stop in pairwise([*firsts, len(tokens)])]
    numbers = torch.full(ids.shape, NO_WORD)
    feature, slot, _ = begins.nonzero(as_tuple=True)
    numbers[feature, slot, place[begins]] = torch.tensor(names.numbers(words), dtype=torch.int64)

    cut = torch.zeros_like(there)
    cut.scatter_(-1, place[..., -1:], closes[..., -1:])
    cut[..., 0] |= opens[..., 0]
    return numbers.masked_fill(cut, NO_WORD), found.masked_fill(cut, 0)


def _is_letter(text: str, last: bool = False) -> bool:
    """Whether a text begins, or ends, with a letter, its marks, a digit or a part of a character."""
    if BYTE.match(text[-6:] if last else text):
        return True
    character = text[-1:] if last else text[:1]
    is_part = character.isalnum() or unicodedata.category(character or " ").startswith("M")
    return is_part and not unicodedata.name(character, "").startswith(WITHOUT_SPACES)
