"""The command: measures everything of a plan, and writes down what it has after each part."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import CONTESTANTS
from benchmarks.goals import COMPARED, OF_TIME
from benchmarks.growth import evaluation_growth, step_growth, update_growth
from benchmarks.machine import machine
from benchmarks.plan import Plan, plan_for
from benchmarks.plots import write_plots
from benchmarks.report import markdown
from benchmarks.steps import measure_size
from benchmarks.waiting import measure_waiting


def main(arguments: Sequence[str] | None = None, plan: Plan | None = None) -> None:
    """Measure, and write ``results.json``, ``results.md`` and ``growth.html``.

    Args:
        arguments: of the command line; None takes the process's own.
        plan: what to measure; None takes the one that the arguments choose.
    """
    options = _options(arguments)
    plan = plan or plan_for(options.full, options.device)
    folder, rounds, device = options.out, options.rounds, options.device
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": machine(device), "device": device, "rounds": rounds, "steps": []}
    sizes, names = (tuple(OF_TIME), COMPARED) if options.only_goals else (plan.sizes, tuple(CONTESTANTS))
    for size in sizes:
        print(f"A step at {size}", flush=True)
        record["steps"].append(measure_size(size, names, rounds, device))
        _write(folder, record)
    if not options.only_goals:
        _measure_growth(record, plan, options)
    print(f"\n{markdown(record)}\nWritten to {folder}")


def _measure_growth(record: dict[str, Any], plan: Plan, options: argparse.Namespace) -> None:
    folder, rounds, device = options.out, options.rounds, options.device
    print("How a step grows with the widths", flush=True)
    record["step_growth"] = step_growth(plan.growth, rounds, device)
    write_plots(record["step_growth"], folder)
    _write(folder, record)
    print("How an evaluation grows with the tokens", flush=True)
    record["evaluation_growth"] = evaluation_growth(plan.evaluation, plan.evaluation_tokens, rounds, device)
    _write(folder, record)
    print("How a hierarchy update grows with the features", flush=True)
    record["update_growth"] = update_growth(plan.updates, device)
    _write(folder, record)
    print("Waiting for activations of the language model", flush=True)
    record["waiting"] = measure_waiting(plan.waiting, plan.waiting_steps, device)
    _write(folder, record)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What a training step of HSAE costs.")
    parser.add_argument("--full", action="store_true", help="all sizes: hours; without it minutes on two cores")
    parser.add_argument(
        "--only-goals", action="store_true", help="only the sizes that have a goal of time, and what it compares"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on cuda the paper's size is measured too")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder to write to (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contestant has (%(default)s)")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1; 5 or more to judge by")
    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device {options.device}: cpu or cuda")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no GPU here; use cpu")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out}: is a file; give a folder")
    return options


def _write(folder: Path, record: dict[str, Any]) -> None:
    for name, text in (("results.json", json.dumps(record, indent=1)), ("results.md", markdown(record))):
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(folder / name)
