"""Named sets of config fields: ``HierarchicalTrainingSAEConfig(**PAPER, d_in=…, …)``."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {"structural_loss_coefficient": 0.01, "perturbation_rate": 0.05}
"""ρ and r as published (HSAE §4.1), where the package's defaults differ."""

INDEPENDENT: dict[str, Any] = {"structural_loss_coefficient": 0.0, "perturbation_rate": 0.0}
"""Exactly as many independent SAEs as there are levels; the last update is then the post-hoc assignment (App. F.2)."""


def fading(training_steps: int) -> dict[str, Any]:
    """A strong structural loss that shapes the forest and then lets go: ρ = 0.3 at first, 0 for the last eighth.

    What parents and children have become by then they stay, while the levels learn to reconstruct as well as
    independent ones.

    Args:
        training_steps: of the whole run; SAELens' ``training_tokens`` over ``train_batch_size_tokens``.
    """
    return {
        "structural_loss_coefficient": 0.3,
        "structural_loss_decay": [round(0.28 * training_steps), round(0.88 * training_steps)],
        "perturbation_rate": 0.0,
    }
