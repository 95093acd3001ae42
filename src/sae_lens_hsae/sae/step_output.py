"""What a training step works on, its output, in which some is made only when it is read, and what it logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_hsae.forest.levels import NO_PARENT, Levels
from sae_lens_hsae.sae.cpu_step.active_entries import ActiveEntries
from sae_lens_hsae.sae.dense_activations import DenseActivations
from sae_lens_hsae.sae.gpu_step.feature_rows import FeatureRows
from sae_lens_hsae.sae.sparsity_control import SparsityState

Activations = DenseActivations | ActiveEntries | FeatureRows
"""The forms in which a batch's activations can be; all have the same values and gradients."""


class LazyStepOutput(TrainStepOutput):
    """SAELens' output of a step; ``feature_acts`` and ``hidden_pre`` are made when they are read, without gradient.

    Each is a pass over (batch, d_sae) numbers, and a tensor of that size, made of ``acts`` in the units of x.
    """

    @override
    def __init__(
        self, acts: ActiveEntries | FeatureRows, in_units_of_x: Callable[[torch.Tensor], torch.Tensor], **others: Any
    ) -> None:
        self._acts, self._in_units_of_x = acts, in_units_of_x
        self.__dict__.update(others)

    @cached_property
    def feature_acts(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(batch, d_sae)."""
        return self._in_units_of_x(self._acts.dense())

    @cached_property
    def hidden_pre(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(batch, d_sae)."""
        return self._in_units_of_x(self._acts.pre_activations.dense())

    def times_fired(self) -> torch.Tensor:
        return self._acts.times_fired()


def output_of(
    acts: Activations,
    in_units_of_x: Callable[[torch.Tensor], torch.Tensor],
    sae_in: torch.Tensor,
    sae_out: torch.Tensor,
    losses: dict[str, torch.Tensor],
    metrics: dict[str, Any],
) -> TrainStepOutput:
    """SAELens' output of a step, of (batch, d_in) and its reconstruction; the loss is the sum of ``losses``."""
    loss = torch.stack(list(losses.values())).sum()
    common: dict[str, Any] = {
        "sae_in": sae_in, "sae_out": sae_out, "loss": loss, "losses": losses, "metrics": metrics,
    }  # fmt: skip
    if not isinstance(acts, DenseActivations):
        return LazyStepOutput(acts, in_units_of_x, **common)
    return TrainStepOutput(feature_acts=in_units_of_x(acts.values), hidden_pre=in_units_of_x(acts.hidden_pre), **common)


def observing_output(x: torch.Tensor, d_sae: int, n_levels: int, parameters: Iterable[nn.Parameter]) -> TrainStepOutput:
    """The output of a step that only observes x (batch, d_in): nothing fires.

    The gradient of ``parameters`` is 0, which Adam counts as a step of theirs: it takes the steps that follow for later
    ones, and makes them larger. All others have no gradient.
    """
    silent = x.new_zeros(len(x), d_sae)
    nothing = torch.stack([0.0 * parameter.float().sum() for parameter in parameters]).sum()
    return TrainStepOutput(
        sae_in=x,
        sae_out=torch.zeros_like(x),
        feature_acts=silent,
        hidden_pre=silent,
        loss=nothing,
        losses={"mse_loss": n_levels * x.detach().float().square().sum(-1).mean()},
        metrics={},
    )


@torch.no_grad()
def level_metrics(
    levels: Levels,
    x: torch.Tensor,
    reconstructions: torch.Tensor,
    l0: torch.Tensor,
    sparsity: SparsityState,
    parents: torch.Tensor,
    dead: torch.Tensor | None,
) -> dict[str, Any]:
    """Metrics of every level on one batch x (batch, d_in), named ``level_0_l0`` and so on.

    Takes unperturbed reconstructions (n_levels, batch, d_in), mean L0 (n_levels,), the controller before the step, and
    which features are dead, (n_features,), None where the trainer keeps no account.
    """
    x = x.float()
    variance = (x - x.mean(0)).square().sum(-1).mean()
    metrics: dict[str, Any] = {}
    for level, own in enumerate(levels):
        mse = (reconstructions[level].float() - x).square().sum(-1).mean()
        metrics[f"level_{level}_l0"] = l0[level]
        metrics[f"level_{level}_l0_ema"] = sparsity.l0_ema[level].clone()
        if sparsity.log_coefficient is not None:
            metrics[f"level_{level}_l0_coefficient"] = sparsity.log_coefficient[level].exp()
        metrics[f"level_{level}_mse"] = mse
        metrics[f"level_{level}_explained_variance"] = 1 - mse / variance
        if dead is not None:
            metrics[f"level_{level}_dead_features"] = dead[own].sum()
        if level > 0:
            metrics[f"level_{level}_unassigned_share"] = (parents[own] == NO_PARENT).float().mean()
    return metrics
