"""Sparsity control: λ of every level is steered so that its L0 approaches the target (HSAE App. A.2).

The paper prescribes the velocity at which L0 is to approach its target, ΔL0 = −η (L0 − L̂0) per step, and lowers λ
where L0 falls faster than that, raises it where it falls slower. Here the same rule acts in log space, in proportion
to the mismatch instead of in fixed steps:

    Δ log λ = gain · ( Δ log L0 + η log(L0 / L̂0) ),

with L0 a running mean. Summed over steps the first term is proportional and the second integral control: the
velocity term keeps λ from winding up while thresholds, which move by about a learning rate per step, catch up, and
the integral term leaves no lasting error.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

LOG_COEFFICIENT_BOUND = math.log(1e6)
"""λ stays within 1e-6 and 1e6: beyond them nothing is left to steer."""

MIN_L0 = 1e-3
"""L0 below this counts as this: the logarithm of a level on which nothing fires must stay finite."""


MIN_THRESHOLD = 1e-3
"""A threshold below this counts as this where λ starts, whose logarithm must be finite."""


class SparsityState(NamedTuple):
    """State of the controller of all levels; both (n_levels,) float32.

    Attributes:
        log_coefficient: log λ_l; None where L0 is exact and nothing is steered (`BatchTopKLevels`).
        l0_ema: running mean of L0_l; 0 before the first step.
    """

    log_coefficient: torch.Tensor | None
    l0_ema: torch.Tensor


def initial_state(n_levels: int, threshold: float, device: torch.device | str) -> SparsityState:
    """The controller before the first step.

    A feature of activation a takes a² off the squared error and costs λ: λ starts at θ², where a threshold of θ breaks
    even.
    """
    start = torch.full((n_levels,), max(threshold, MIN_THRESHOLD), device=device)
    return SparsityState(2 * start.log(), torch.zeros(n_levels, device=device))


def follow_l0(ema: torch.Tensor, l0: torch.Tensor, momentum: float) -> torch.Tensor:
    """The running mean of every level's L0 after one more batch, (n_levels,); it begins with the first batch."""
    return torch.where(ema == 0, l0, momentum * ema + (1 - momentum) * l0).clamp(min=MIN_L0)


def control_sparsity(
    state: SparsityState, l0: torch.Tensor, target: torch.Tensor, rate: float, gain: float, momentum: float
) -> SparsityState:
    """One step of the controller.

    Args:
        state: the controller before the step.
        l0: mean L0 of each level on this batch, (n_levels,).
        target: L̂0, (n_levels,).
        rate: η, share of log(L0 / L̂0) to lose per step.
        gain: answer of log λ to a mismatch of the velocity.
        momentum: of the running mean of L0.

    Returns:
        The controller after the step.

    Raises:
        ValueError: if the state has no λ.
    """
    if state.log_coefficient is None:
        raise ValueError("the state has no λ to steer")
    ema = follow_l0(state.l0_ema, l0, momentum)
    velocity = torch.where(state.l0_ema == 0, 0, (ema / state.l0_ema.clamp(min=MIN_L0)).log())
    mismatch = velocity + rate * (ema / target).log()
    log_coefficient = (state.log_coefficient + gain * mismatch).clamp(-LOG_COEFFICIENT_BOUND, LOG_COEFFICIENT_BOUND)
    return SparsityState(log_coefficient, ema)
