"""SAELens' own JumpReLU SAEs at a given L0. They have a fixed λ, so the λ that gives this L0 is searched for."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

FIRST_LAMBDA = 0.6
MOST_TRAININGS = 4
CLOSE_ENOUGH = 0.05
"""Share by which L0 may be off."""
MEASURED_ON = 20_000
"""Activations, of those trained on."""
SEARCH = (MOST_TRAININGS, CLOSE_ENOUGH, MEASURED_ON)


def new_jumprelu(width: int, d_in: int, l0_coefficient: float = FIRST_LAMBDA) -> JumpReLUTrainingSAE:
    """SAELens' JumpReLU SAE with HSAE's fields, before training."""
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=d_in,
            d_sae=width,
            l0_coefficient=l0_coefficient,
            jumprelu_init_threshold=1.0,
            jumprelu_bandwidth=1.0,
            jumprelu_ste_to_input=True,
            decoder_init_norm=1.0,
        )
    )


def train_to_l0(
    width: int, target: float, x: torch.Tensor, train: Callable[[JumpReLUTrainingSAE], None], seed: int
) -> JumpReLUTrainingSAE:
    """The SAE whose L0 comes closest to ``target``, of as many trainings as it takes.

    log L0 is taken for linear in log λ between the two trainings that enclose the target, or, as long as none does,
    for falling by half as λ doubles.

    Args:
        x: activations of mean norm √d_in, (tokens, d_in).
        train: trains an SAE on them.
        seed: of the initial weights, the same in every training.
    """
    above: tuple[float, float] | None = None
    below: tuple[float, float] | None = None
    log_lambda, best, best_error = math.log(FIRST_LAMBDA), None, math.inf
    for _ in range(MOST_TRAININGS):
        torch.manual_seed(seed)
        sae = new_jumprelu(width, x.shape[1], math.exp(log_lambda))
        train(sae)
        with torch.no_grad():
            l0 = sum((sae.encode(part) > 0).sum().item() for part in x[:MEASURED_ON].split(1024)) / len(x[:MEASURED_ON])
        error = math.log(max(l0, 0.01) / target)
        if abs(error) < best_error:
            best, best_error = sae, abs(error)
        if best_error < CLOSE_ENOUGH:
            break
        if error > 0:
            above = (log_lambda, error)
        else:
            below = (log_lambda, error)
        if above and below:
            log_lambda = above[0] + (below[0] - above[0]) * above[1] / (above[1] - below[1])
        else:
            log_lambda += error
    assert best is not None
    return best
