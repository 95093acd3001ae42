"""Named sets of config fields, for ``HierarchicalTrainingSAEConfig(**PAPER, …)``."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
    "structural_loss_coefficient": 0.01,
    "perturbation_rate": 0.05,
}
"""ρ and r as published (HSAE §4.1). The fields in which this package has the paper's values are not repeated."""
