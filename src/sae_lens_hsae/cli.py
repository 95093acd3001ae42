"""The command ``hsae``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sae_lens.llm_sae_training_runner import _run_cli

from sae_lens_hsae.demo import demo
from sae_lens_hsae.explorer.command import add_explore, run_explore
from sae_lens_hsae.label_command import add_label_and_judge, run_label_or_judge
from sae_lens_hsae.reproduce.command import add_reproduce, run_reproduce


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand; argparse ends the process with code 2 on a wrong call."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="hsae", description="Hierarchical sparse autoencoders for SAELens.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo", help="train a four-level forest on all-MiniLM-L6-v2, offline, and show some of its trees"
    )
    commands.add_parser("train", help="SAELens' own command line, which then knows --architecture hsae", add_help=False)
    add_explore(commands)
    add_label_and_judge(commands)
    add_reproduce(commands)
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.command == "train":
        _run_cli(rest)
        return
    parser.parse_args(arguments)  # refuses what is left over
    if chosen.command == "explore":
        run_explore(chosen)
        return
    if chosen.command in ("label", "judge"):
        run_label_or_judge(chosen)
        return
    if chosen.command == "reproduce":
        run_reproduce(chosen)
        return
    demo()
