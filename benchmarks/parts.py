"""Where the time of a step goes, part by part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.contestants import Trained
from benchmarks.timing import wait_for
from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.sae import forms, perturbation
from sae_lens_hsae.sae.cpu_step import active_entries, row_products
from sae_lens_hsae.sae.cpu_step.active_entries import ActiveEntries
from sae_lens_hsae.training import trainer

REST = "the rest"
PARTS: dict[str, list[tuple[Any, str]]] = {
    "encoder product": [(forms, "product_of_rows")],
    "finding entries": [(active_entries.PreActivations, "above"), (forms, "places_of")],
    "their values": [(ActiveEntries, "__init__")],
    "decode and its gradients": [(ActiveEntries, "reconstruct"), (row_products._SumRows, "backward")],
    "encoder gradient": [(active_entries._PreActivationsAt, "backward")],
    "structural loss and its gradients": [
        (HierarchicalTrainingSAE, "_structural_loss"),
        (row_products._DotRows, "backward"),
    ],
    "perturbation": [(perturbation, "draw_replaced"), (perturbation, "replacements"), (ActiveEntries, "_changes")],
    "clipping": [(torch.nn.utils, "clip_grad_norm_")],
    "optimizer": [(import_module("torch.optim.adam"), "adam")],
    "renormalisation": [(HierarchicalTrainingSAE, "project_parameters")],
    "counting what fired": [(trainer.HierarchicalSAETrainer, "_count_firing")],
}
"""By name, the functions whose own time it is: without that of other parts called from them."""


def seconds_by_part(contestant: Trained, batches: list[torch.Tensor], steps: int, device: str) -> dict[str, float]:
    """Seconds per step that each part takes, in the order of ``PARTS``, then ``REST``; of HSAE in its sparse form.

    What a replacement adds to decode is decode; that gradients of one tensor are added up, and those of elementwise
    functions, is the rest.
    """
    contestant.step(batches[0])
    clock = _Clock(device)
    with _watched(clock):
        for step in range(steps):
            with clock.on(REST):
                contestant.step(batches[step % len(batches)])
    return {part: clock.seconds[part] / steps for part in (*PARTS, REST)}


class _Clock:
    """Gives each moment to the part that was entered last."""

    def __init__(self, device: str) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._parts: list[str] = []
        self._since = 0.0

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        self._settle()
        self._parts.append(part)
        try:
            yield
        finally:
            self._settle()
            self._parts.pop()

    def _settle(self) -> None:
        wait_for(self._device)
        now = time.perf_counter()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now


@contextmanager
def _watched(clock: _Clock) -> Iterator[None]:
    patches = [
        patch.object(owner, name, _timed(vars(owner)[name], part, clock))
        for part, functions in PARTS.items()
        for owner, name in functions
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def _timed(function: Any, part: str, clock: _Clock) -> Any:
    static = isinstance(function, staticmethod)
    plain: Callable[..., Any] = function.__func__ if static else function

    def timed(*args: Any, **kwargs: Any) -> Any:
        with clock.on(part):
            return plain(*args, **kwargs)

    return staticmethod(timed) if static else timed
