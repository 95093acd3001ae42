"""A behaviour as pairs of prompts: on the clean one the model should prefer an answer to its foil."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from sae_lens_hsae.storage.text_files import json_lines
from sae_lens_hsae.text.hook_point import check_length, device_of, ids_of_text

EXAMPLE = '{"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is"}'


@dataclass(frozen=True)
class Pair:
    """One example of a behaviour.

    Attributes:
        clean: the prompt.
        answer: the right continuation, one token; mind the space that it begins with.
        foil: the wrong one, one token, such as the right continuation of ``patch``.
        patch: another prompt of the same number of tokens that differs in what matters; None: against zero.
    """

    clean: str
    answer: str
    foil: str
    patch: str | None = None


@dataclass(frozen=True)
class Batch:
    """Pairs of one length as tokens."""

    clean: torch.Tensor  # (pairs, context)
    patch: torch.Tensor | None  # (pairs, context); None against zero
    answers: torch.Tensor  # (pairs,) token ids
    foils: torch.Tensor  # (pairs,) token ids
    n_before: int  # positions at the beginning that hold no text, such as BOS; nothing is attributed there

    def differences(self, logits: torch.Tensor) -> torch.Tensor:
        """(pairs,) logit of the answer less that of the foil, after the prompt; of (pairs, context, vocabulary)."""
        last = logits[:, -1]
        index = torch.arange(len(last), device=last.device)
        return last[index, self.answers.to(last.device)] - last[index, self.foils.to(last.device)]


def read_pairs(path: str | Path) -> list[Pair]:
    """Pairs from a file, one JSON object a line with the fields of `Pair`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line that is no pair, or if there is none.
    """
    names = {field.name for field in fields(Pair)}
    pairs = []
    for where, value in json_lines(path):
        whole = isinstance(value, dict) and names - {"patch"} <= value.keys() <= names
        if not whole or not all(isinstance(own, str) for name, own in value.items() if (name, own) != ("patch", None)):
            raise ValueError(f"{where} is no pair; write {EXAMPLE}, each a text; patch may be left out")
        pairs.append(Pair(**value))
    if not pairs:
        raise ValueError(f"{path} holds no pair; write one a line, such as {EXAMPLE}")
    return pairs


def batches_of(pairs: Sequence[Pair], model: Any, sae: Any) -> list[Batch]:
    """Pairs as tokens, those of one length together; ``sae`` has metadata that say what texts began with in training.

    A ValueError if there is no pair, only some have a ``patch``, or one has prompts of unequal length, an answer of
    several tokens, no contrast or no text.
    """
    if not pairs:
        raise ValueError("pairs is empty; give at least one Pair")
    if len({pair.patch is None for pair in pairs}) > 1:
        raise ValueError("some pairs have a patch and some have none; give one to all of them, or to none")
    by_length: dict[int, list[tuple[list[int], list[int], int, int, int]]] = defaultdict(list)
    for number, pair in enumerate(pairs, 1):
        before, clean = ids_of_text(model, sae, pair.clean)
        patch = [] if pair.patch is None else ids_of_text(model, sae, pair.patch)[1]
        if not clean or (pair.patch is not None and not patch):
            raise ValueError(f"pair {number}: a prompt is empty; give text")
        check_length(model, len(before) + len(clean), f"pair {number}: clean")
        if patch and len(patch) != len(clean):
            raise ValueError(
                f"pair {number}: clean={pair.clean!r} has {len(clean)} tokens and patch={pair.patch!r} has "
                f"{len(patch)}; reword one, so that they are of equal length"
            )
        answer, foil = (_one_token(number, name, getattr(pair, name), model) for name in ("answer", "foil"))
        if answer == foil or patch == clean:
            same = "answer and foil" if answer == foil else "clean and patch"
            raise ValueError(f"pair {number}: {same} are the same tokens, so there is no contrast; give different ones")
        by_length[len(clean)].append((before + clean, before + patch, answer, foil, len(before)))
    found = []
    for own in by_length.values():
        clean, patch, answers, foils, n_before = zip(*own, strict=True)
        has_patch = pairs[0].patch is not None
        tensors = [torch.tensor(each, device=device_of(model)) for each in (clean, patch, answers, foils)]
        found.append(Batch(tensors[0], tensors[1] if has_patch else None, tensors[2], tensors[3], n_before[0]))
    return found


def _one_token(number: int, name: str, text: str, model: Any) -> int:
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = model.tokenizer.convert_ids_to_tokens(ids)
        raise ValueError(f"pair {number}: {name}={text!r} has {len(ids)} tokens, {pieces}; give one of a single token")
    return ids[0]
