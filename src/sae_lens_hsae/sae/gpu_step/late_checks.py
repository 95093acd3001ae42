"""What the host has to know of a step, told one step later: it never waits for the step that is running.

A wait in the middle of a step leaves the device without work for as long as the host takes to hand it the next piece.
What a bad batch could spoil is therefore held back on the device (`LateChecks.good`), and told a step later.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Told(NamedTuple):
    """What is known of the step before."""

    step: int  # its number
    peak: float  # largest activation of its batch, by absolute value
    loss: float  # of all terms together
    n_dead: tuple[int, ...]  # dead features of every level at its beginning


class LateChecks:
    """Numbers of each step, on their way to the host while the next one runs.

    Attributes:
        good: 1 where the step's numbers are finite and its batch is not all zero, else 0; () float32, on the device.
            None before a step has sent its numbers.
    """

    def __init__(self) -> None:
        self.good: torch.Tensor | None = None
        self._sent: tuple[int, torch.Tensor, torch.cuda.Event | None] | None = None

    @property
    def bad(self) -> torch.Tensor | None:
        """1 − good, what an optimizer calls ``found_inf``."""
        return None if self.good is None else 1 - self.good

    def send(self, step: int, x: torch.Tensor, loss: torch.Tensor, n_dead: torch.Tensor) -> None:
        """Begin to tell of a step, and say on the device whether it is good.

        Takes x (batch, d_in), the loss of all terms together, (), and the dead features of every level, (L,).
        """
        peak = x.detach().abs().amax().float()
        loss = loss.detach().float()
        self.good = (peak.isfinite() & (peak > 0) & loss.isfinite()).float()
        numbers = torch.cat([torch.stack([peak, loss]), n_dead.float()])
        if not numbers.is_cuda:
            self._sent = (step, numbers, None)
            return
        on_host = torch.empty(numbers.shape, pin_memory=True)
        on_host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(numbers.device))  # which need not be the current device's
        self._sent = (step, on_host, arrived)

    def receive(self) -> Told | None:
        """What was sent last, once; None if nothing was. Waits until that step's device work is done, not for later."""
        self.good = None
        if self._sent is None:
            return None
        (step, numbers, arrived), self._sent = self._sent, None
        if arrived is not None:
            arrived.synchronize()
        peak, loss, *n_dead = numbers.tolist()
        return Told(step, peak, loss, tuple(map(int, n_dead)))
