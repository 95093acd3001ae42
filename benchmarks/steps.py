"""One size: time and memory of a step of every contestant, and the floor below them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from itertools import cycle
from typing import Any

import torch

from benchmarks.contestants import (
    BANDWIDTH,
    CONTESTANTS,
    DEFAULTS,
    HSAE,
    NAIVE,
    NO_HIERARCHY,
    Contestant,
    Trained,
    matrix_precision,
)
from benchmarks.goals import outcomes
from benchmarks.memory import in_fresh_process, peak_bytes
from benchmarks.naive import available_bytes, naive_bytes
from benchmarks.parts import seconds_by_part
from benchmarks.plan import Size
from benchmarks.planted import Planted, plant
from benchmarks.timing import alternate, ratio, spread

GIB = 2**30
L0_TOLERANCE = 0.1
MEMORY_STEPS = 8
"""The first has no state of Adam's yet; one has the defaults' structural loss, and two are counted."""
PROFILED_STEPS = 8

WARM_UP = Size(8, (4, 8), 16, 2)


def measure_size(size: Size, names: Sequence[str], rounds: int, device: str) -> dict[str, Any]:
    """Time the contestants in turns, and run each in a fresh process for its peak memory.

    Args:
        size: of the step.
        names: of the contestants.
        rounds: how many turns each has.
        device: where.

    Returns:
        ``contestants``, by name: ``seconds`` per step, ``peak_bytes``, ``activations_per_second``, ``l0`` per level
        and ``hsae_as_multiple``, HSAE's time divided by this one's; or why it was ``left_out``. Beside them
        the ``hierarchy_updates``' seconds and share of training by contestant, ``seconds_by_part`` of HSAE with and
        without hierarchy, what became of the ``goals``, and what the report tells of the floor and of L0.
    """
    results: dict[str, dict[str, Any]] = {name: {} for name in names}
    available = available_bytes(device)
    if NAIVE in results and naive_bytes(size) > available:
        needs, has = naive_bytes(size) / GIB, available / GIB
        results[NAIVE]["left_out"] = f"needs about {needs:,.0f} GiB, of {has:,.0f} GiB to use"
    taking_part = [name for name in names if "left_out" not in results[name]]
    with matrix_precision(size):
        planted = plant(size, device)
        entries = _entries_per_active(planted, size)
        contestants = {name: CONTESTANTS[name](size, planted) for name in taking_part}
        batches = cycle(planted.batches)
        actions = {name: partial(_step, each, batches) for name, each in contestants.items()}
        seconds = alternate(actions, rounds, device)
        for name, contestant in contestants.items():
            results[name]["seconds"] = spread(seconds[name])
            results[name]["activations_per_second"] = size.batch / results[name]["seconds"]["median"]
            if name != HSAE:
                results[name]["hsae_as_multiple"] = ratio(seconds[HSAE], seconds[name])
            if isinstance(contestant, Trained):
                results[name]["l0"] = contestant.l0(planted.batches[0])
        parts = {
            name: seconds_by_part(contestant, planted.batches, PROFILED_STEPS, device)
            for name, contestant in contestants.items()
            if name in (HSAE, NO_HIERARCHY) and isinstance(contestant, Trained)
        }
        updates = {
            name: _hierarchy_update(contestants[name], results[name]["seconds"]["median"], rounds, device)
            for name in (HSAE, DEFAULTS)
            if name in contestants
        }
        del contestants, actions, planted, batches
    gc.collect()
    for name in taking_part:
        try:
            results[name]["peak_bytes"] = in_fresh_process(contestant_peak, name, size, device)
        except BrokenProcessPool:
            results[name]["peak_bytes"] = None  # it was killed for want of memory
    return {
        "size": asdict(size) | {"name": str(size), "n_features": size.n_features},
        "entries_per_active": entries,
        "unavoidable_bytes": unavoidable_bytes(size),
        "l0_differs": l0_differs(results),
        "hierarchy_updates": updates,
        "seconds_by_part": parts,
        "goals": [
            {
                **outcome.goal._asdict(),
                "multiple": outcome.multiple,
                "slowest": outcome.slowest,
                "missed": outcome.missed,
            }
            for outcome in outcomes(size, results)
        ],
        "contestants": results,
    }


def _hierarchy_update(contestant: Contestant, step_seconds: float, rounds: int, device: str) -> dict[str, Any]:
    """Time of the update of all boundaries, and its share of training at the default interval."""
    assert isinstance(contestant, Trained)
    seconds = spread(alternate({"update": contestant.update_hierarchies}, rounds, device)["update"])
    between = contestant.trainers[0].sae.cfg.hierarchy_update_every * step_seconds
    return {"seconds": seconds, "share_of_training": seconds["median"] / (between + seconds["median"])}


def contestant_peak(name: str, size: Size, device: str) -> int:
    """Bytes that a contestant's weights, optimizer, steps and a hierarchy update need at most; for a fresh process.

    It has run once, tiny, by then: the pages of the libraries' code are no part of it.
    """
    planted = plant(size, device)

    def run(size: Size, planted: Planted) -> None:
        contestant = CONTESTANTS[name](size, planted)
        for _, batch in zip(range(MEMORY_STEPS), cycle(planted.batches)):
            contestant.step(batch)
        if isinstance(contestant, Trained):
            contestant.update_hierarchies()
            contestant.step(planted.batches[0])

    with matrix_precision(size):
        run(WARM_UP, plant(WARM_UP, device))
        return peak_bytes(partial(run, size, planted), device)


def l0_differs(results: dict[str, dict[str, Any]]) -> list[str]:
    """Contestants with an L0 more than a tenth away from HSAE's, at some level or, where they have none, in all."""
    ours, differ = results[HSAE]["l0"], []
    for name, result in results.items():
        own = result.get("l0", ours)
        expected = ours if len(own) == len(ours) else [sum(ours)]
        if any(abs(a - b) > L0_TOLERANCE * b for a, b in zip(own, expected, strict=True)):
            differ.append(name)
    return differ


def unavoidable_bytes(size: Size) -> int:
    """What one step of L JumpReLU SAEs with Adam has to move, in float32.

    Parameters are read and written, gradients written and read, Adam's two moments read and written; the activations
    are read once.
    """
    n_parameters = size.n_features * (2 * size.d_in + 2) + len(size.widths) * size.d_in
    return 4 * (8 * n_parameters + size.batch * size.d_in)


def _step(contestant: Contestant, batches: Any) -> None:
    contestant.step(next(batches))


@torch.no_grad()
def _entries_per_active(planted: Planted, size: Size) -> list[float]:
    """Per level, pre-activations above θ − ε/2 for each one above θ."""
    shares = []
    for rows, threshold in zip(planted.directions.split(size.widths), planted.thresholds, strict=True):
        pre = planted.batches[0] @ rows.T
        active = (pre > threshold).sum().clamp(min=1)
        shares.append(((pre > threshold - BANDWIDTH / 2).sum() / active).item())
    return shares
