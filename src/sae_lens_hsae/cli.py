"""The command ``hsae``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from sae_lens_hsae.commands.clarity import add_clarity, run_clarity
from sae_lens_hsae.commands.demo import demo
from sae_lens_hsae.commands.evaluate import add_evaluate, run_evaluate
from sae_lens_hsae.commands.explain import add_explain, run_explain
from sae_lens_hsae.commands.label import add_label_and_judge, run_label_or_judge
from sae_lens_hsae.commands.sweep import add_sweep, run_sweep_command
from sae_lens_hsae.commands.train import train
from sae_lens_hsae.explorer.command import add_explore, run_explore
from sae_lens_hsae.reproduce.command import add_reproduce, run_reproduce
from sae_lens_hsae.sharing.command import add_convert, add_push, run_convert, run_push
from sae_lens_hsae.training.ranks import n_launched

COMMANDS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "demo": lambda _: demo(),
    "evaluate": run_evaluate,
    "clarity": run_clarity,
    "explain": run_explain,
    "explore": run_explore,
    "label": run_label_or_judge,
    "judge": run_label_or_judge,
    "reproduce": run_reproduce,
    "sweep": run_sweep_command,
    "push": run_push,
    "convert": run_convert,
}
DEBUG = "--debug"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand.

    Exit codes: 0, 1 where bad input or the machine kept it from being done, 2 on a wrong call. An error that a user
    can mend is one line on stderr; ``--debug``, anywhere on the line, shows its traceback instead.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in arguments
    arguments = [argument for argument in arguments if argument != DEBUG]
    parser = argparse.ArgumentParser(prog="hsae", description="Hierarchical sparse autoencoders for SAELens.")
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error, with any command")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "demo", help="train a four-level forest on all-MiniLM-L6-v2, offline, and show some of its trees"
    )
    commands.add_parser("train", help="train on a language model; SAELens' fields are flags", add_help=False)
    for add in (
        add_evaluate,
        add_clarity,
        add_explain,
        add_explore,
        add_label_and_judge,
        add_reproduce,
        add_sweep,
        add_push,
        add_convert,
    ):
        add(commands)
    # Its flags are SAELens' and many; it reads them itself, its own --help included.
    trains = arguments[:1] == ["train"]
    chosen = parser.parse_args(arguments[:1] if trains else arguments)
    if not trains and n_launched() > 1:
        parser.error(f"{chosen.command} is for one process, but {n_launched()} were started; torchrun is for train")
    try:
        if trains:
            train(arguments[1:])
        else:
            COMMANDS[chosen.command](chosen)
    except (OSError, ValueError, ImportError) as error:
        if debug:
            raise
        sys.exit(f"hsae {chosen.command}: {error}")
