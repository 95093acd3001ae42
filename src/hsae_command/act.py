"""The parsers of ``hsae circuit`` and ``hsae steer``, which act on a forest's language model."""

from __future__ import annotations

import argparse
from typing import Any

from hsae_command import SUBCOMMANDS
from hsae_command.shared import LABELS_HELP, add_device, add_json


def add_circuit(commands: Any) -> None:
    """Add ``circuit`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "circuit",
        help=SUBCOMMANDS["circuit"],
        description="Attribute a behaviour of a causal language model, the logit of an answer less that of a foil, to "
        "features of saved SAEs at one or several of its hook points: first the coarsest features, then the children "
        "of those over the threshold.",
    )
    parser.add_argument("folders", nargs="+", metavar="folder", help="where an SAE was saved; one for each hook point")
    parser.add_argument(
        "--pairs",
        required=True,
        help='a .jsonl file, a line like {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is"}; '
        "without any patch, effects are against zero",
    )
    parser.add_argument(
        "--method",
        choices=("attribution", "integrated", "patch"),
        default="attribution",
        help="gradients on the clean prompts, gradients integrated from the other prompts, or a run of the model per "
        "feature (default: %(default)s)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.1, help="least effect of a node, in logits (default: %(default)s)"
    )
    parser.add_argument(
        "--edges",
        type=float,
        metavar="LEAST",
        help="also find what goes from node to node of the next hook point, at least so many logits, such as 0.01",
    )
    parser.add_argument("--output", default="circuit.json", help="the circuit as JSON goes here (default: %(default)s)")
    add_device(parser)
    add_json(parser)


def add_steer(commands: Any) -> None:
    """Add ``steer`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "steer",
        help=SUBCOMMANDS["steer"],
        description="Choose features of a saved SAE that tell two sets of texts apart, push them while its causal "
        "language model writes, and show the text before and after, with its perplexity under the model as it is.",
    )
    parser.add_argument("folder", help="where the SAE was saved")
    parser.add_argument("--positive", required=True, help="a text file, a text a line, with what is wanted")
    parser.add_argument("--negative", required=True, help="the opposite, or without it, in the same form")
    parser.add_argument("--prompt", required=True, help="what the model goes on from")
    parser.add_argument(
        "--method",
        choices=("sta", "spare", "srps", "sae-rsv", "means"),
        default="sta",
        help="selects features (default: %(default)s)",
    )
    parser.add_argument(
        "--level", type=int, default=-1, help="of the features; -1 is the finest (default: %(default)s)"
    )
    parser.add_argument(
        "--descend", action="store_true", help="from the coarsest level down, only into children of what was selected"
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=2.0,
        help="1 is as much as the two sets differ by in the features; below 0 steers away (default: %(default)s)",
    )
    parser.add_argument("--n-tokens", type=int, default=40, help="to write (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an example, the first (default: %(default)s)")
    parser.add_argument("--labels", help=LABELS_HELP)
    add_device(parser)
    add_json(parser)
