"""Tokens as a person reads them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte as SentencePiece's byte fallback writes it; here all bytes are written so that are no whole character."""
REPLACED = "\ufffd"
N_TRIED = 50


class TokenTexts(dict[int, str]):
    """Text of each token id as it stands amid other text, made when it is first asked for.

    The tokenizer's own decoder says what a token stands for: WordPiece (``##ing``), SentencePiece (``▁the``) and
    byte-level tokens (``Ġthe``) differ in how they mark the space before a word; here it is a space for all. Special
    tokens stay as they are. Of a token that is a part of a character the bytes are shown, ``<0xE2><0x9C>``;
    `whole_characters` puts those of a context together. An id that the tokenizer does not know is ``⟨id⟩``.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._special: set[int] = set(getattr(tokenizer, "all_special_ids", ()))
        self._added: set[int] = set(getattr(tokenizer, "get_added_vocab", dict)().values())

    def __missing__(self, id_: int) -> str:
        self[id_] = text = self._text(id_)
        return text

    def _text(self, id_: int) -> str:
        try:
            token = self._tokenizer.convert_ids_to_tokens(id_)
            if not isinstance(token, str):
                return f"⟨{id_}⟩"
            if id_ in self._special:
                return token
            text = self._amid_text(token)
            if REPLACED in text:
                raw = None if id_ in self._added else self._bytes(token)
                return token if raw is None else readable(raw)
            return text or token
        except Exception:  # a tokenizer that cannot decode one of its own ids must not cost the whole page
            return f"⟨{id_}⟩"

    def _amid_text(self, token: str) -> str:
        # At the beginning and the end decoders strip the very spaces that are asked for.
        beside, before, after = self._surroundings
        if beside is None:
            return self._decoded([token])
        text = self._decoded([beside, token, beside])
        if text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
            return text[len(before) : len(text) - len(after)]
        return self._decoded([token])

    @cached_property
    def _surroundings(self) -> tuple[str | None, str, str]:
        """A token without any mark, its text before another one, and its text after another one."""
        plain = (token for token in self._tokenizer.get_vocab() if token.isascii() and token.isalnum())
        for token in heapq.nsmallest(N_TRIED, plain, key=lambda each: (len(each), each)):
            if self._decoded([token]) == token:
                return token, token, self._decoded([token, token]).removeprefix(token)
        return None, "", ""

    def _decoded(self, tokens: list[str]) -> str:
        return self._tokenizer.convert_tokens_to_string(tokens)

    def _bytes(self, token: str) -> bytes | None:
        """What the token stands for in bytes; None where it is no token of bytes."""
        if BYTE.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        return bytes(byte_of[character] for character in token) if byte_of.keys() >= set(token) else None


def parting_tokens(tokenizer: Any) -> list[str]:
    """Texts of the special tokens that stand between texts, begin them or fill them up.

    Those of an unknown word and of a masked one stand within a text, so they are none of these, unless they do both, as
    GPT-2's only special token does.
    """
    roles = dict(tokenizer.special_tokens_map)
    within = {roles.pop("unk_token", None), roles.pop("mask_token", None)} - set(map(str, roles.values()))
    return [token for token in tokenizer.all_special_tokens if token not in within]


def readable(raw: bytes) -> str:
    """The characters that are whole; the other bytes as ``<0xE2>``."""
    return _join([raw])[0][0]


def whole_characters(texts: Sequence[str]) -> list[str]:
    """Consecutive tokens' texts: the one that completes a character shows it, those before it their bytes."""
    return _join([*map(_bytes_of, texts)])[0] if any(map(BYTE.search, texts)) else list(texts)


def joined_characters(texts: Sequence[str]) -> list[tuple[slice, str]]:
    """Consecutive tokens, those together that share a character: which they are, and their text."""
    firsts = _join([*map(_bytes_of, texts)])[1] if any(map(BYTE.search, texts)) else range(len(texts))
    go_on = {i for last, first in enumerate(firsts) for i in range(first + 1, last + 1)}
    bounds = [*(i for i in range(len(texts)) if i not in go_on), len(texts)]
    return [(slice(start, stop), whole_characters(["".join(texts[start:stop])])[0]) for start, stop in pairwise(bounds)]


def _bytes_of(text: str) -> bytes:
    """Of a token's text, in which some bytes may be written out."""
    # Splitting by a group gives text and the group's digits in turn.
    pieces = enumerate(BYTE.split(text))
    return b"".join(bytes.fromhex(piece) if i % 2 else piece.encode() for i, piece in pieces)


def _join(tokens: Sequence[bytes]) -> tuple[list[str], list[int]]:
    """Text of each token, given in bytes; and with which token its characters begin."""
    token_of = [i for i, raw in enumerate(tokens) for _ in raw]
    texts, firsts, start = [""] * len(tokens), list(range(len(tokens))), 0
    for character in b"".join(tokens).decode(errors="surrogateescape"):
        raw = character.encode(errors="surrogateescape")
        owners = token_of[start : start + len(raw)]
        shown_by = None if "\udc80" <= character <= "\udcff" else owners[-1]  # None for a byte of no whole character
        for i, byte in zip(owners, raw, strict=True):
            texts[i] += f"<0x{byte:02X}>" if i != shown_by else ""
        if shown_by is not None:
            texts[shown_by] += character
            firsts[shown_by] = min(firsts[shown_by], owners[0])
        start += len(raw)
    return texts, firsts
