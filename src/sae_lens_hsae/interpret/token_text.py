"""Tokens as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

CONTINUATION = "##"
SPACE_MARK = "▁"


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Text of each token id, with its leading space where the tokenizer keeps one; ``⟨id⟩`` if it cannot be decoded.

    Args:
        tokenizer: a Hugging Face tokenizer. WordPiece (``##ing``), SentencePiece (``▁the``) and byte-level ones differ
            in how they mark the space before a word; here it is a space for all.
        ids: token ids.
    """
    special: set[int] = set(getattr(tokenizer, "all_special_ids", ()))
    word_pieces = any(str(token).startswith(CONTINUATION) for token in list(tokenizer.get_vocab())[:50_000])
    return {id_: _text(tokenizer, id_, word_pieces, special) for id_ in ids}


def _text(tokenizer: Any, id_: int, word_pieces: bool, special: set[int]) -> str:
    try:
        token = tokenizer.convert_ids_to_tokens(id_)
        if not isinstance(token, str):
            return f"⟨{id_}⟩"
        if id_ in special:
            return token
        if word_pieces:
            return token.removeprefix(CONTINUATION) if token.startswith(CONTINUATION) else f" {token}"
        if token.startswith(SPACE_MARK):
            return token.replace(SPACE_MARK, " ")
        # A byte-level token may be part of a character; then its raw form says more than a replacement mark.
        text = tokenizer.decode([id_])
        return token if not text or "\ufffd" in text else text
    except Exception:  # a tokenizer that cannot decode one of its own ids must not cost the whole page
        return f"⟨{id_}⟩"
