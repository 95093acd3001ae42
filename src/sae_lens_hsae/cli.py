"""The command ``hsae``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sae_lens_hsae.demo import demo


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; argparse ends the process with code 2 on a wrong call."""
    parser = argparse.ArgumentParser(prog="hsae", description="Hierarchical sparse autoencoders for SAELens.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo", help="train a four-level forest on all-MiniLM-L6-v2, offline, and show some of its trees"
    )
    parser.parse_args(arguments)
    demo()
