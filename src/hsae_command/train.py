"""The flags of ``hsae train``: its own, which are read here, and those of SAELens that most runs set.

SAELens' parser makes a flag of every field of its configs, for which it has to be imported; the help asks for it only
where every flag is wanted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hsae_command import SUBCOMMANDS, add_json

PRESETS = (
    "paper",
    "independent",
    "gpt2",
    "gemma-2-2b-layer-6",
    "gemma-2-2b-layer-13",
    "gemma-2-2b-layer-20",
    "qwen3-4b-layer-18",
)
"""What ``--preset`` takes."""

HELP = {"-h", "--help"}
EVERY_FLAG = "--help-all"
USUAL = {
    "model_name": "the language model, such as gpt2; presets for language models set this and the next five",
    "hook_name": "where to read it, such as blocks.8.hook_resid_post",
    "d_in": "width of the activations there, such as 768",
    "level_widths": "features per level, coarse to fine: 1024 4096",
    "target_l0": "active features per token: one number, or one per level: 16 32",
    "dataset_path": "a data set on the Hugging Face hub, or a local folder",
    "training_tokens": "how many to train on",
    "output_path": "where the SAE goes, such as runs/mine",
    "device": "such as cuda (default: cpu)",
    "log_to_wandb": "False keeps the run off W&B (default: True)",
}
"""SAELens' and HSAE's fields that most runs set."""


def at_home(path: str) -> str:
    """A path whose ``~`` is the home folder, which the shell puts in only where ``~`` begins a word."""
    return str(Path(path).expanduser()) if path == "~" or path.startswith("~/") else path


def asks_for_help(arguments: list[str]) -> bool:
    """Whether the flags ask for the short help: also where there are none."""
    return not arguments or (bool(HELP & set(arguments)) and EVERY_FLAG not in arguments)


def sources() -> argparse.ArgumentParser:
    """Where flags come from, beside the command line."""
    parser = argparse.ArgumentParser(prog="hsae train", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", action="append", default=[], type=at_home, metavar="FILE", help="YAML or JSON: flags, flat"
    )
    parser.add_argument("--preset", action="append", default=[], help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--dry-run", action="store_true", help="say what it would do and take, with warnings, and stop")
    add_json(parser)
    return parser


def beyond_saelens() -> argparse.ArgumentParser:
    """Flags that go with SAELens' own, in files too."""
    parser = argparse.ArgumentParser(prog="hsae train", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--evaluation_tokens", type=int, default=0, help="tokens to measure the forest on afterwards (default: none)"
    )
    parser.add_argument(
        "--variance_floor",
        type=float,
        default=0.0,
        help="mean variance explained below which forest/hamming_at_matched_variance pays (default: %(default)s)",
    )
    parser.add_argument(
        "--max_bad_batches", type=int, default=0, help="batches of NaN or infinite numbers to skip (default: none)"
    )
    parser.add_argument(
        "--text", help="train on a text of your own instead of dataset_path: a text file, a .jsonl file, or a folder"
    )
    parser.add_argument("--column", default="text", help="where the .jsonl of --text has it (default: %(default)s)")
    parser.add_argument("--keep_checkpoints", type=int, help="how many stay, the newest (default: all)")
    parser.add_argument(
        "--rank_timeout",
        type=float,
        default=600.0,
        help="under torchrun, seconds for which one process waits for the others (default: %(default)g)",
    )
    return parser


def help_parser() -> argparse.ArgumentParser:
    """The parser of the help: our flags, and the usual ones of SAELens."""
    parser = argparse.ArgumentParser(
        prog="hsae train",
        parents=[sources(), beyond_saelens()],
        usage="hsae train [--preset NAME] [--config FILE] [--FLAG VALUE …]",
        description=f"{SUBCOMMANDS['train'][0].upper()}{SUBCOMMANDS['train'][1:]}. Presets come first, then files, "
        "then the other flags; the last one that sets a flag wins.",
        epilog="Every field of SAELens' LanguageModelSAERunnerConfig and of HierarchicalTrainingSAEConfig is a flag; "
        f"hsae train {EVERY_FLAG} lists them. --d_sae is the sum of the level widths unless you say otherwise. "
        'Lists are written --level_widths 128 256 or "--level_widths=[128, 256]".',
    )
    parser.add_argument(EVERY_FLAG, action="store_true", help="list every flag and stop")
    usual = parser.add_argument_group("what most runs set")
    for name, meaning in USUAL.items():
        usual.add_argument(f"--{name}", help=meaning, metavar="")
    return parser
