"""What a training step logs, per level under SAELens' names for an SAE, and of the forest."""

from __future__ import annotations

from typing import Any

import torch

from sae_lens_hsae.forest.levels import NO_PARENT, Levels
from sae_lens_hsae.sae.sparsity_control import SparsityState


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

    Of unperturbed reconstructions (n_levels, batch, d_in), mean L0 (n_levels,), the controller before the step, and
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
