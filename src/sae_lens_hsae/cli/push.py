"""``hsae push`` and ``hsae convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hsae_command import SUBCOMMANDS
from sae_lens_hsae.cli.outcome import Outcome, add_json
from sae_lens_hsae.forest.files import FORMATS, read_forest, write_forest
from sae_lens_hsae.hub.push import push, push_dry_run, save_levels
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae


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


def run_push(chosen: argparse.Namespace) -> Outcome:
    """Push; the commit's address. With ``--dry-run`` what would be pushed."""
    if chosen.dry_run:
        sizes, card = push_dry_run(chosen.folder, chosen.repository, chosen.path, levels=chosen.levels)
        lines = [f"{size:>13,}  {name}" for name, size in sizes.items()]
        head = f"Would go to {chosen.repository}, {sum(sizes.values()):,} bytes; nothing was uploaded"
        return Outcome("\n".join([head, *lines, "", card]), {"files": sizes, "card": card})
    address = push(chosen.folder, chosen.repository, chosen.path, levels=chosen.levels, private=chosen.private)
    return Outcome(address, {"commit": address})


def add_convert(commands: Any) -> None:
    """Add ``convert`` to the subparsers of the command ``hsae``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "convert",
        help=SUBCOMMANDS["convert"],
        description="Write a forest for other tools. The output's ending decides: .json, .graphml or .csv; a name "
        "without ending is a folder, which gets every level as an ordinary SAELens SAE.",
    )
    parser.add_argument("source", type=Path, help="a saved HSAE's folder, or a forest's .json")
    parser.add_argument("output", type=Path, help=f"ends in {', '.join(FORMATS)}, or is a folder")
    add_json(parser)


def run_convert(chosen: argparse.Namespace) -> Outcome:
    """Convert; what was written."""
    source, output = chosen.source, chosen.output
    if output.suffix:
        forest = read_forest(source) if source.is_file() else load_hierarchical_sae(source).forest
        return _written([write_forest(forest, output)])
    if source.is_file():
        raise ValueError(f"output={str(output)!r} names a folder for the levels, but {source} holds a forest alone")
    return _written([output / name for name in save_levels(load_hierarchical_sae(source), output)])


def _written(paths: list[Path]) -> Outcome:
    return Outcome("\n".join(map(str, paths)), {"written": list(map(str, paths))})
