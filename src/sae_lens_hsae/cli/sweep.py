"""W&B's sweep files without a server: every configuration with several seeds, one table."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import yaml

from hsae_command.parsers import EVALUATION_TOKENS
from hsae_command.train import sources
from sae_lens_hsae.cli.flags import as_flags, command_line, parse_flags
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.cli.measure import METRICS, summary
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.cli.train import all_flags, parse, train
from sae_lens_hsae.evaluation import ForestEvaluation
from sae_lens_hsae.storage.text_files import read_text
from sae_lens_hsae.storage.whole_files import check_writable, write_whole

ARGUMENTS = "${args}"
SET_BY_SWEEP = ("seed", "output_path", "log_to_wandb")
"""Flags that every run gets from here."""


def read_sweep(path: str | Path) -> dict[str, Any]:
    """A sweep file whose configurations can be told in advance; its command is ``hsae train … ${args}``."""
    try:
        sweep = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{str(path)!r} is no YAML: {error}") from error
    if not isinstance(sweep, dict) or not isinstance(sweep.get("parameters"), dict) or not sweep["parameters"]:
        raise ValueError(f"{str(path)!r} has no parameters; see examples/sweeps")
    command = sweep.get("command", [])
    if not isinstance(command, list) or command[:2] != ["hsae", "train"] or ARGUMENTS not in command:
        raise ValueError(f"command={command}: write [hsae, train, …, {ARGUMENTS!r}]")
    metric = sweep.get("metric")
    if metric is not None and not (isinstance(metric, dict) and metric.get("name") in METRICS):
        raise ValueError(f"metric={metric}: without a server its name must be one of {', '.join(METRICS)}")
    for name, parameter in sweep["parameters"].items():
        if not isinstance(parameter, dict) or not {"value", "values"} & set(parameter):
            raise ValueError(
                f"parameters.{name}={parameter}: without a server only 'value' and 'values' can be run; list "
                "values, or use wandb sweep"
            )
        if "values" in parameter and not (isinstance(parameter["values"], list) and parameter["values"]):
            raise ValueError(f"parameters.{name}.values={parameter['values']!r}: give a list of at least one value")
        if name in SET_BY_SWEEP:
            raise ValueError(f"parameters.{name}: every run gets its own {name}; leave it out (--seeds says how many)")
    return sweep


def configurations(sweep: dict[str, Any], runs: int | None = None) -> list[dict[str, Any]]:
    """Every combination of the parameters' values, or ``runs`` of them, drawn at random, always the same."""
    values = [p["values"] if "values" in p else [p["value"]] for p in sweep["parameters"].values()]
    everyone = [dict(zip(sweep["parameters"], chosen, strict=True)) for chosen in itertools.product(*values)]
    return everyone if runs is None or runs >= len(everyone) else random.Random(0).sample(everyone, runs)


def arguments_of(sweep: dict[str, Any], configuration: dict[str, Any]) -> list[str]:
    """What follows ``hsae train`` for one configuration."""
    own = command_line(as_flags(configuration))
    return [word for part in sweep["command"][2:] for word in (own if part == ARGUMENTS else [str(part)])]


def run_sweep(
    path: str | Path,
    output: Path,
    seeds: int = 3,
    runs: int | None = None,
    further: Sequence[str] = (),
    workers: int = 1,
) -> pandas.DataFrame:
    """Train and measure every configuration; finished ones are kept in ``output``, and a later call does the rest.

    ``output`` gets the models, a JSON file per finished run, and the table as ``NAME.csv``. ``further`` are words of
    the command line for every run, over those of the file.

    The table has one row per configuration, best first, those with NaN last: its parameters, the mean of each number of
    `summary` over the seeds, and ``…_spread``, half its range; NaN if it is NaN for any seed. A file without ``metric``
    keeps its own order.
    """
    check_writable("output", output)
    sweep = read_sweep(path)
    for name in parse_flags(sources().parse_known_args(list(further))[1]):
        if name in sweep["parameters"] or name in SET_BY_SWEEP:
            raise ValueError(f"--{name} after -- would take the place of what the sweep sets; leave it out")
    chosen = configurations(sweep, runs)
    cells = []
    for configuration in chosen:
        for seed in range(seeds):
            words = [*arguments_of(sweep, configuration), *further, f"--seed={seed}", "--log_to_wandb=False"]
            name = hashlib.sha256(repr((configuration, sorted(all_flags(words).items()))).encode()).hexdigest()[:12]
            words.append(f"--output_path={output / 'models' / name}")
            own, _ = parse(words)
            if own.dry_run:
                raise ValueError("dry_run=True is for one run; leave it out, or try a configuration with hsae train")
            cells.append(Cell(f"run-{name}", measured, (words, configuration)))
    results = finish_cells(cells, output / "cells", f"Sweep {Path(path).stem}", workers)
    table = _table(results, sweep)
    write_whole(output / f"{Path(path).stem}.csv", table.to_csv(index=False, na_rep="NaN"))
    return table


def measured(words: list[str], configuration: dict[str, Any]) -> dict[str, Any]:
    own, cfg = parse(words)
    own.evaluation_tokens = own.evaluation_tokens or EVALUATION_TOKENS
    evaluation = train(own, cfg)
    assert isinstance(evaluation, ForestEvaluation)
    return {name: str(value) for name, value in configuration.items()} | summary(evaluation, own.variance_floor)


def _table(results: list[dict[str, Any]], sweep: dict[str, Any]) -> pandas.DataFrame:
    grouped: Any = pandas.DataFrame(results).groupby(list(sweep["parameters"]), sort=False)
    # pandas leaves NaN out, so that a configuration would be ranked by the seeds that went well.
    means = grouped.agg(lambda values: values.mean(skipna=False))
    spread = grouped.agg(lambda values: (values.max(skipna=False) - values.min(skipna=False)) / 2).add_suffix("_spread")
    table = means.join(spread)
    metric = sweep.get("metric")
    if metric is not None:
        table = table.sort_values(metric["name"], ascending=metric.get("goal") != "maximize")
    return table.reset_index()


def run_sweep_command(chosen: argparse.Namespace) -> Outcome:
    table = run_sweep(chosen.file, chosen.output, chosen.seeds, chosen.runs, chosen.further, chosen.workers)
    return Outcome(table.to_string(index=False), table.to_dict("records"))
