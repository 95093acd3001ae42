"""What training did with text, as the SAE's metadata tell: so it is read afterwards too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_lens import SAE
from sae_lens.pretokenize_runner import get_special_token_from_cfg
from sae_lens.util import get_special_token_ids


def first_token(metadata: Any, tokenizer: Any) -> int | None:
    """The token that every context begins with; None for a tokenizer without BOS, to which SAELens adds nothing."""
    return tokenizer.bos_token_id if metadata.prepend_bos else None


def separator(metadata: Any, tokenizer: Any) -> int | None:
    """The token between two texts: as in training, or the tokenizer's end token where nothing is known of that.

    Where the tokenizer lacks the token that SAELens is to put there, as BERT's and Qwen's lack BOS, what remains is the
    one that it puts there by itself: BERT's does.
    """
    if "sequence_separator_token" in metadata:
        name = metadata.sequence_separator_token
        token = get_special_token_from_cfg(name, tokenizer)
        by_itself = tokenizer("")["input_ids"] if token is None and name is not None else []
        return by_itself[-1] if by_itself else token
    return next((id_ for id_ in (tokenizer.eos_token_id, tokenizer.sep_token_id) if id_ is not None), None)


def before_text(metadata: Any, tokenizer: Any) -> int | None:
    """The token that goes before a single text, so that the text's own first token is read as most were in training.

    The first position of a context is an artefact of many models: what fires there is about the position, not about the
    token. So where training put no first token, since none was asked for or the tokenizer has none, and texts came one
    after another, the text gets their separator.
    """
    first = first_token(metadata, tokenizer)
    if first is None and metadata.prepend_bos is not None and not metadata.disable_concat_sequences:
        return separator(metadata, tokenizer)
    return first


def begins_bare(metadata: Any, start: Sequence[int]) -> bool:
    """Whether a text's own first token stands where `before_text` gave nothing to go before it."""
    return not start and metadata.prepend_bos is not None


def excluded_tokens(sae: SAE[Any], tokenizer: Any) -> list[int]:
    """Ids of the tokens that training left out: for True SAELens' choice, which keeps the tokens of a chat."""
    excluded = sae.cfg.metadata.exclude_special_tokens
    if isinstance(excluded, (list, tuple)):
        return list(excluded)
    return sorted(get_special_token_ids(tokenizer)) if excluded else []


def positions(metadata: Any) -> slice:
    """The positions of a context that were trained on; of a shorter text those that it has of them."""
    found = metadata.seqpos_slice or (None,)
    try:
        chosen, length = slice(*found), metadata.context_size
        if chosen.indices(1)[2] > 0:
            return slice(_from_the_start(chosen.start, length), _from_the_start(chosen.stop, length), chosen.step)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"the SAE's metadata have seqpos_slice={found!r}; it must be the start, the stop and the step of a slice of "
        "positions, such as [1, None], with a step above 0"
    )


def _from_the_start(end: int | None, length: int | None) -> int | None:
    """A bound that counts from the end of a context of this length, not from that of any text."""
    return max(0, end + length) if end is not None and end < 0 and length else end
