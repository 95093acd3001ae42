"""Flags that say which text a command reads, and on which device."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from datasets import Dataset

from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.hook_point import most_tokens
from sae_lens_hsae.text.rows import TextSource, text_rows


def check_device(device: str) -> None:
    """Check that one can compute there, before anything is loaded.

    Raises:
        ValueError: if not.
    """
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # torch answers with errors of many kinds
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"device={device!r} cannot be used here ({why}); cpu always can") from error


def text_source(chosen: argparse.Namespace) -> TextSource:
    """What the flags say.

    Raises:
        ValueError: if they name both a file and a data set.
    """
    return TextSource(chosen.text, chosen.dataset, chosen.split, chosen.column)


def read_rows(text: TextSource | None, sae: HierarchicalSAE, model: Any, n_tokens: int) -> Dataset:
    """The rows of a text, said on stderr in one line: what it is, and whether the SAE was trained on it."""
    text = text or TextSource()
    print(text.said(sae.cfg.metadata), file=sys.stderr, flush=True)
    return text_rows(text, sae.cfg.metadata, model.tokenizer, n_tokens, limit=most_tokens(model))
