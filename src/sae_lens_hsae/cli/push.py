"""``hsae push`` and ``hsae convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.evaluation.stacks import check_scale
from sae_lens_hsae.forest.files import read_forest, write_forest
from sae_lens_hsae.hub.push import push, push_dry_run, save_levels
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.storage.whole_files import check_file_writable, check_writable


def run_push(chosen: argparse.Namespace) -> Outcome:
    if chosen.dry_run:
        sizes, card = push_dry_run(chosen.folder, chosen.repository, chosen.path, levels=chosen.levels)
        lines = [f"{size:>13,}  {name}" for name, size in sizes.items()]
        head = f"Would go to {chosen.repository}, {sum(sizes.values()):,} bytes; nothing was uploaded"
        return Outcome("\n".join([head, *lines, "", card]), {"files": sizes, "card": card})
    address = push(chosen.folder, chosen.repository, chosen.path, levels=chosen.levels, private=chosen.private)
    return Outcome(address, {"commit": address})


def run_convert(chosen: argparse.Namespace) -> Outcome:
    source, output = chosen.source, chosen.output
    if output.suffix:
        check_file_writable("output", output)
        forest = read_forest(source) if source.is_file() else load_hierarchical_sae(source).forest
        return _written([write_forest(forest, output)])
    if source.is_file():
        raise ValueError(f"output={str(output)!r} names a folder for the levels, but {source} holds a forest alone")
    check_writable("output", output)
    sae = load_hierarchical_sae(source)
    check_scale([sae])
    return _written([output / name for name in save_levels(sae, output)])


def _written(paths: list[Path]) -> Outcome:
    return Outcome("\n".join(map(str, paths)), {"written": list(map(str, paths))})
