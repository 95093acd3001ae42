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
from torch import nn

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig

LOG_COEFFICIENT_BOUND = math.log(1e6)
"""λ stays within 1e-6 and 1e6: beyond them nothing is left to steer."""

MIN_L0 = 1e-3
"""L0 below this counts as this: the logarithm of a level on which nothing fires must stay finite."""

MIN_THRESHOLD = 1e-3
"""A threshold below this counts as this where λ starts, whose logarithm must be finite."""


class SparsityState(NamedTuple):
    """State of the controller of all levels; both (n_levels,) float32."""

    log_coefficient: torch.Tensor | None  # log λ_l; None where L0 is exact (`BatchTopKLevels`)
    l0_ema: torch.Tensor  # running mean of L0_l; 0 before the first step


def follow_l0(ema: torch.Tensor, l0: torch.Tensor, momentum: float) -> torch.Tensor:
    """The running mean of every level's L0 after one more batch, (n_levels,); it begins with the first batch."""
    return torch.where(ema == 0, l0, momentum * ema + (1 - momentum) * l0).clamp(min=MIN_L0)


def control_sparsity(
    state: SparsityState, l0: torch.Tensor, target: torch.Tensor, rate: float, gain: float, momentum: float
) -> SparsityState:
    """The controller after one more step, of mean L0 and L̂0 of each level (n_levels,).

    ``rate`` is η, the share of log(L0 / L̂0) to lose per step, ``gain`` the answer of log λ to a mismatch of the
    velocity, ``momentum`` that of the running mean of L0.
    """
    assert state.log_coefficient is not None, "the state has no λ to steer"
    ema = follow_l0(state.l0_ema, l0, momentum)
    velocity = torch.where(state.l0_ema == 0, 0, (ema / state.l0_ema.clamp(min=MIN_L0)).log())
    mismatch = velocity + rate * (ema / target).log()
    log_coefficient = (state.log_coefficient + gain * mismatch).clamp(-LOG_COEFFICIENT_BOUND, LOG_COEFFICIENT_BOUND)
    return SparsityState(log_coefficient, ema)


class SparsityControl(nn.Module):
    """The controller of a training, in float32: in half precision its steps would be rounded away.

    Keeps ``l0_ema`` (L,), the running mean of every level's L0, and of levels that are steered, which BatchTopK's are
    not, ``log_l0_coefficient`` (L,).
    """

    l0_ema: torch.Tensor
    log_l0_coefficient: torch.Tensor

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        self._steers = cfg.level_activation != "batchtopk"
        n_levels = len(cfg.levels)
        self.register_buffer("l0_ema", torch.zeros(n_levels, device=device))
        if self._steers:
            # A feature of activation a takes a² off the squared error and costs λ: λ starts at θ², where a threshold of
            # θ breaks even.
            start = torch.full((n_levels,), max(cfg.jumprelu_init_threshold, MIN_THRESHOLD), device=device)
            self.register_buffer("log_l0_coefficient", 2 * start.log())

    @torch.compiler.disable()
    def state(self) -> SparsityState:
        """The controller as it is now."""
        # Copies, because a compiled graph keeps what it reads for its backward pass, which runs after it has moved.
        log_coefficient = self.log_l0_coefficient.clone() if self._steers else None
        return SparsityState(log_coefficient, self.l0_ema.clone())

    @torch.no_grad()
    def follow(self, l0: torch.Tensor, good: torch.Tensor | None = None) -> None:
        """Take a step's L0 (L,) into the running mean, and steer λ for the next; nothing where ``good`` is 0, ()."""
        cfg = self._cfg
        if not self._steers:
            _move(self.l0_ema, follow_l0(self.l0_ema, l0, cfg.l0_ema_momentum), good)
            return
        # Made on the host and sent, where it would else wait until the device has it.
        target = torch.tensor(cfg.target_l0_per_level).to(l0.device, non_blocking=True)
        after = control_sparsity(self.state(), l0, target, cfg.sparsity_rate, cfg.sparsity_gain, cfg.l0_ema_momentum)
        assert after.log_coefficient is not None
        _move(self.log_l0_coefficient, after.log_coefficient, good)
        _move(self.l0_ema, after.l0_ema, good)


def _move(buffer: torch.Tensor, moved: torch.Tensor, good: torch.Tensor | None) -> None:
    buffer.copy_(moved if good is None else torch.where(good > 0, moved, buffer))
