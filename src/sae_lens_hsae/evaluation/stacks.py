"""What the measures take for a stack of levels: any SAEs over the same activations, coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from sae_lens.saes.transcoder import Transcoder

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.stack_checks import check_flat, check_one_token, check_same_input, check_widths


class LevelSAE(Protocol):
    """What is asked of a level's SAE; every SAELens SAE has it."""

    cfg: Any  # with d_in and d_sae
    device: torch.device

    def encode(self, x: torch.Tensor) -> torch.Tensor: ...
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor: ...


class SAEStack(Protocol):
    """One object that holds all levels, as `HierarchicalSAE` does."""

    cfg: Any  # with level_widths

    def level_sae(self, level: int) -> LevelSAE: ...


def level_saes(levels: Sequence[LevelSAE] | SAEStack) -> list[LevelSAE]:
    """One SAE per level, coarse to fine, from either form that `evaluate_forest` takes; they read flat activations.

    Raises:
        TypeError: if ``levels`` is neither.
        ValueError: if an SAE does not read one token at a time.
    """
    if hasattr(levels, "level_sae"):
        stack: Any = levels
        saes = [stack.level_sae(level) for level in range(len(stack.cfg.level_widths))]
        for sae in saes:  # copies, so the caller's stack keeps its own setting
            sae.turn_off_forward_pass_hook_z_reshaping()
        return saes
    if hasattr(levels, "encode"):
        raise TypeError(
            f"levels is a {type(levels).__name__}, which has no level_sae(); pass a list with one SAE per level"
        )
    check_one_token(levels)  # type: ignore[arg-type]
    return list(levels)  # type: ignore[arg-type]


def check_reconstruct(saes: Sequence[LevelSAE]) -> None:
    """Check that no SAE is a transcoder, whose output is another hook point's; a ValueError if one is."""
    for level, sae in enumerate(saes):
        if isinstance(sae, Transcoder):
            raise ValueError(
                f"level {level} is a {type(sae).__name__}, which gives another hook point's activations than it reads; "
                "FeatureForest.from_saes(), collect_dashboards() and contrast() take it, this does not"
            )


def check_fit(saes: Sequence[LevelSAE], forest: FeatureForest) -> None:
    """Check that the SAEs can be levels of the forest, else a ValueError; a TypeError if it is no `FeatureForest`."""
    if not isinstance(forest, FeatureForest):
        raise TypeError(
            f"forest is a {type(forest).__name__}, not a FeatureForest; take a HierarchicalSAE's .forest, "
            "or FeatureForest(parents, level_widths)"
        )
    check_widths(saes, forest.level_widths)
    check_same_input(saes)
    check_flat(saes)


def check_scale(saes: Sequence[LevelSAE]) -> None:
    """Check that the SAEs read activations as a model has them; a ValueError if times a factor, as checkpoints do."""
    if any(getattr(sae.cfg, "normalize_activations", "none") == "expected_average_only_in" for sae in saes):
        raise ValueError(
            "the SAE has normalize_activations='expected_average_only_in': it reads activations times a factor, which "
            "is not known here; call its fold_activation_norm_scaling_factor(), as training does at its end. Of a "
            "checkpoint the factor stands in activation_scaler.json, and HierarchicalSAE.load_from_disk() folds it"
        )
