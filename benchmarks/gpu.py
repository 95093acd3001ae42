"""One run for whoever has a GPU: its tests, then what a step costs at the paper's size, in at most eight minutes.

    python -m benchmarks.gpu

Rows are written as soon as they are measured, those with a goal first; what the time does not suffice for is left out
and named.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import (
    CONTESTANTS,
    DEFAULTS,
    ENCODER,
    HSAE,
    NO_HIERARCHY,
    PLAIN,
    SAELENS,
    Trained,
    matrix_precision,
)
from benchmarks.gpu_decoding import DICTIONARIES, measure_decoding
from benchmarks.gpu_report import markdown
from benchmarks.machine import machine
from benchmarks.memory import peak_bytes
from benchmarks.plan import LARGE, PAPERS_D_IN, Size
from benchmarks.planted import plant
from benchmarks.steps import WARM_UP
from benchmarks.timing import alternate, ratio, spread, wait_for

COMPARED = (HSAE, DEFAULTS, NO_HIERARCHY, PLAIN, SAELENS, ENCODER)
SIZES = (
    Size(PAPERS_D_IN, LARGE, 4096, 50, "bfloat16"),
    Size(PAPERS_D_IN, LARGE, 4096, 50, "tf32"),
    Size(PAPERS_D_IN, LARGE, 1024, 50, "bfloat16"),
    Size(PAPERS_D_IN, LARGE, 4096, 50, "float32"),
)
MINUTES = 8.0
ONE_SIZE = 60.0
"""Seconds; a size is not begun with less left."""
TESTS = 150.0
"""Seconds after which the tests are ended."""
STEPS_BEFORE_PEAK = 2
"""The second one has Adam's state from the beginning."""


def run(options: argparse.Namespace, sizes: Sequence[Size], dictionaries: Sequence[int]) -> dict[str, Any]:
    """Measure what the time suffices for, and write ``results.json`` and ``results.md`` after every row."""
    deadline = time.monotonic() + 60 * options.minutes
    device, folder = options.device, options.out
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": machine(device), "device": device, "rounds": options.rounds}
    record["machine"]["commit"] = options.commit or record["machine"]["commit"]
    record |= {"tests": None, "steps": [], "decoding": [], "left_out": []}

    def keep() -> None:
        for name, text in (("results.json", json.dumps(record, indent=1)), ("results.md", markdown(record))):
            unfinished = folder / f"{name}.unfinished"
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(folder / name)

    keep()
    if options.tests:
        print("The tests marked gpu", flush=True)
        record["tests"] = run_tests(min(TESTS, deadline - time.monotonic()))
        keep()
    for size in sizes:
        if deadline - time.monotonic() < ONE_SIZE:
            record["left_out"].append(str(size))
            continue
        print(f"A step at {size}", flush=True)
        record["steps"].append(measure_step(size, options.rounds, device))
        keep()
    for n_features in dictionaries:
        if deadline - time.monotonic() < ONE_SIZE / 2:
            record["left_out"].append(f"decoding from {n_features:,} features")
            continue
        print(f"Decoding from {n_features:,} features", flush=True)
        record["decoding"].append(measure_decoding(n_features, sizes[0], options.rounds, device))
        keep()
    keep()
    return record


def run_tests(seconds: float) -> dict[str, Any]:
    """Pytest's last lines on the tests marked gpu, and whether all passed."""
    root = Path(__file__).parent.parent
    # By their files: collecting all others would need whatever those import.
    files = [str(path) for path in sorted((root / "tests").rglob("test_on_gpu*.py"))]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as expired:
        return {"passed": False, "told": f"ended after {expired.timeout:.0f} s"}
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"passed": done.returncode == 0, "told": "\n".join(lines[-1:] if done.returncode == 0 else lines[-40:])}


def measure_step(size: Size, rounds: int, device: str) -> dict[str, Any]:
    """Time in turns, peak memory, L0, and how often the host waits for the device, of every contestant."""
    try:
        with matrix_precision(size):
            return {"size": str(size), "contestants": _measured(size, rounds, device)}
    finally:
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.compiler.reset()  # kernels of another precision would count among those of this one


def _measured(size: Size, rounds: int, device: str) -> dict[str, dict[str, Any]]:
    planted = plant(size, device)
    batches = cycle(planted.batches)
    results: dict[str, dict[str, Any]] = {name: {} for name in COMPARED}
    contestants: dict[str, Any] = {}

    def build(name: str) -> None:
        contestants[name] = CONTESTANTS[name](size, planted)
        for _ in range(STEPS_BEFORE_PEAK):
            contestants[name].step(next(batches))

    for name, own in results.items():
        _warm_up(name, device)
        try:
            own["peak_bytes"] = peak_bytes(partial(build, name), device)
        except torch.OutOfMemoryError as error:
            contestants.pop(name, None)
            own["left_out"] = str(error).partition(". ")[0]
    actions = {name: partial(_step, each, batches) for name, each in contestants.items()}
    seconds = alternate(actions, rounds, device)
    for name, each in contestants.items():
        own = results[name]
        own["seconds"] = spread(seconds[name])
        own["activations_per_second"] = size.batch / own["seconds"]["median"]
        own["hsae_as_multiple"] = ratio(seconds[HSAE], seconds[name])
        own["waits_per_step"] = waits(actions[name], device)
        if isinstance(each, Trained):
            own["l0"] = each.l0(planted.batches[0])
    return results


def _warm_up(name: str, device: str) -> None:
    """Have libraries allocate what they do once, which is nobody's."""
    tiny = plant(WARM_UP, device)
    CONTESTANTS[name](WARM_UP, tiny).step(tiny.batches[0])


def waits(action: Callable[[], object], device: str) -> int | None:
    """How often the host waits for the device in an action; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    wait_for(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(each.message) for each in told)


def _step(contestant: Any, batches: Any) -> None:
    contestant.step(next(batches))


def main(
    arguments: Sequence[str] | None = None,
    sizes: Sequence[Size] = SIZES,
    dictionaries: Sequence[int] = DICTIONARIES,
) -> None:
    """Run, and print what was measured; a test that failed is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What a step costs on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder to write to (%(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="that it may take (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each contestant has (%(default)s)")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="measure only")
    parser.add_argument("--commit", help="of the code, where git does not know it")
    options = parser.parse_args(arguments)
    if options.device.partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device {options.device}: cuda or cpu")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no GPU here; --device cpu shows that the script runs")
    if options.rounds < 1 or options.minutes <= 0:
        parser.error("--rounds and --minutes must be positive")
    record = run(options, sizes, dictionaries)
    print(f"\n{markdown(record)}\nWritten to {options.out}")
    if record["tests"] is not None and not record["tests"]["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
