"""Times of steps, taken in turns, and what is said about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import torch
from scipy.stats import linregress

REPEATS = 8
"""As many steps as `structural_loss_every`: of those that follow one another one has the structural loss."""


def alternate(actions: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds that each action takes, in every round.

    In each round every action has one turn, and each round begins with another of them, so that whatever else the
    machine does falls on all alike. A turn begins with one run that is not counted, because the caches still hold what
    the one before it used; then come ``REPEATS`` that are, however long the action takes. One run of each before the
    first round warms up.

    Args:
        actions: by name.
        rounds: how many.
        device: waited for before the clock is read.

    Returns:
        By name, ``rounds`` means over the ``REPEATS`` of a turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for name in names:
        _seconds(actions[name], device)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            _, *counted = (_seconds(actions[name], device) for _ in range(1 + REPEATS))
            seconds[name].append(fmean(counted))
    return seconds


def _seconds(action: Callable[[], object], device: str) -> float:
    wait_for(device)
    start = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """All rounds, and their median, least and most."""
    return {"rounds": list(seconds), "median": median(seconds), "least": min(seconds), "most": max(seconds)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Our time as a multiple of theirs, round by round: the median, and the round that was worst for us."""
    ratios = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {"median": median(ratios), "slowest": max(ratios)}


def linear_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The straight line through (x, y): slope, intercept, R², and the largest distance as a share of the value."""
    line: Any = linregress(x, y)
    distances = [abs(line.slope * a + line.intercept - b) / b for a, b in zip(x, y, strict=True)]
    return {
        "slope": float(line.slope),
        "intercept": float(line.intercept),
        "r_squared": float(line.rvalue**2),
        "largest_distance": float(max(distances)),
    }
