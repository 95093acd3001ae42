"""The command ``hsae`` before it needs anything: help, version and wrong calls.

It stands beside ``sae_lens_hsae`` because importing anything from there imports SAELens and torch, which takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

SUBCOMMANDS = {
    "demo": "train a forest on a small language model, offline, show some of its trees, write its page",
    "train": "train on a language model; SAELens' fields are flags",
    "evaluate": "measure a saved SAE's levels and forest, and keep the result beside it",
    "clarity": "score every feature's label of tokens on contexts it was not made from, without a language model",
    "explain": "show which paths of the forest are active on each token of a text",
    "explore": "write a saved SAE's explorer page: one HTML file, no server",
    "contrast": "say which features differ between two sets of texts, and at which level",
    "circuit": "say which features of saved SAEs carry a behaviour of their language model, coarse to fine",
    "steer": "choose features that tell two sets of texts apart, push them, and show what the model writes",
    "label": "have a language model name the features of a saved SAE",
    "judge": "have a language model judge edges of a saved SAE's forest, and controls",
    "sweep": "run a W&B sweep file without a server, several seeds each, into one table",
    "push": "upload a saved HSAE to the Hugging Face hub, with a model card",
    "convert": "write a forest as JSON, GraphML or CSV, or every level as an ordinary SAE",
}
"""What each subcommand does, in the order of the help."""

DEBUG = "--debug"
EPILOG = """Results go to stdout, everything else to stderr, progress bars only to a terminal. Exit codes: 0; 1 where
bad input or the machine kept it from being done; 2 on a wrong call; 130 on SIGINT, 143 on SIGTERM."""


def root_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the subcommand."""
    parser = argparse.ArgumentParser(
        prog="hsae", description="Hierarchical sparse autoencoders for SAELens.", epilog=EPILOG
    )
    versions = f"hsae {version('sae-lens-hsae')} (sae-lens {version('sae-lens')}, torch {version('torch')})"
    parser.add_argument("--version", action="version", version=versions)
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error, with any command")
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, with which a command prints `Outcome.data`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer what needs no SAE; hand the rest to `sae_lens_hsae.cli.main`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from hsae_command.parsers import read_line

    read_line(arguments)
    from sae_lens_hsae.cli import main as cli

    cli.main(arguments)
