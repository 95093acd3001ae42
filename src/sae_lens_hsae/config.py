"""Configurations of the architecture ``hsae``; no tensors here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import simple_parsing
from sae_lens.saes.sae import SAEConfig, TrainingSAEConfig
from typing_extensions import override

from sae_lens_hsae.config_checks import (
    ARCHITECTURE,
    Activation,
    DeadFeatureLoss,
    check_common,
    check_dict,
    check_levels,
    check_training,
)
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.parents import DEFAULT_RULE, ParentRule, Similarity


@dataclass
class HierarchicalSAEConfig(SAEConfig):
    """Configuration of a `HierarchicalSAE` for inference.

    Args:
        level_widths: features per level, coarse to fine, strictly increasing; they add up to ``d_sae``.
        output_level: the level that ``decode`` and ``forward`` reconstruct from; −1 is the finest.

    Raises:
        ValueError: naming the field, its value and the remedy.
    """

    level_widths: list[int] = field(default_factory=list)
    output_level: int = -1

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @property
    def levels(self) -> Levels:
        """Widths of the levels and their slices of the features."""
        return Levels(tuple(self.level_widths))

    def __post_init__(self) -> None:
        check_common(self)
        super().__post_init__()
        check_levels(self)

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> HierarchicalSAEConfig:
        """SAELens' ``from_dict``, for a dict that may come from anybody.

        Raises:
            ValueError: naming the field that is wrong or missing, and the remedy.
        """
        check_dict(config_dict)
        return super().from_dict(config_dict)


@dataclass(kw_only=True)
class HierarchicalTrainingSAEConfig(TrainingSAEConfig):
    """Configuration for training a `HierarchicalTrainingSAE` (HSAE, arXiv 2602.11881).

    Args:
        level_widths: n_l, features per level, coarse to fine, strictly increasing; they add up to ``d_sae``.
        output_level: the level that ``decode`` and ``forward`` reconstruct from; −1 is the finest.
        level_activation: "jumprelu", whose L0 λ steers to the target, or "batchtopk", whose L0 is exact; both are saved
            as JumpReLU levels.
        target_l0: L̂0, active features per token: one number per level, or one, which is then the finest level's.
        l0_width_exponent: with one ``target_l0``, a level of n features gets target_l0 · (n / n_finest)^exponent: in a
            tree few of the broad concepts are active at a time. 0 gives every level the same.
        structural_loss_coefficient: ρ, weight of the parent–children loss L_PC (§3.1).
        structural_loss_every: L_PC is applied every this many steps, its gradient multiplied by as much; 1 is every
            step, as published.
        perturbation_rate: r, probability with which a parent's contribution is replaced by its children's in
            the reconstruction of its level, drawn per feature and step (§3.2).
        hierarchy_update_every: most steps between two updates of the forest (§3.3); early updates come each at twice
            the step of the last.
        hierarchy_first_update: step of the first forest. Before it there is neither structural loss nor perturbation.
        hierarchy_similarity: what makes a parent similar to a child: cosine of their "encoder" or "decoder"
            directions, or "coactivation", the share of tokens on which both are active (§3.3), or "conditional",
            P(parent | child) − 2 P(parent) of parents that fire at least as often as the child; of P(parent | child)
            the lower end of its confidence interval. The default minimum_similarity=0.25 is in units of "conditional";
            with another similarity set minimum_similarity as well, as ``presets.PAPER`` does with "encoder".
        unassigned_fraction: share of each level's children, those least similar to any parent, that stay
            without one (§3.3, partial tree).
        minimum_similarity: a child whose best similarity is not above it stays without a parent, too; None sets no bar.
        max_children: most children a parent may have; 2 gives binary trees, None sets no limit.
        freeze_hierarchy_after: last step at which the forest may change (fixed tree); None never freezes it.
        perturbation_seed: seed of the draws of the perturbation.
        jumprelu_init_threshold: θ at the start.
        jumprelu_bandwidth: ε, width of the straight-through estimator.
        jumprelu_ste_to_input: whether the estimator's gradient also reaches the pre-activations.
        sparsity_rate: η, share of its distance to the target that a level's log L0 is to lose per step (App. A.2).
        sparsity_gain: how strongly λ_l answers to the difference between that velocity and the measured one.
        l0_ema_momentum: momentum of the running mean of each level's L0 (App. A.2).
        dead_feature_loss: how features that do not fire learn to: with "auxiliary" those silent for 64 times the mean
            interval between two firings reconstruct the residual (arXiv 2406.04093); with "ghost" those dead by the
            trainer's ``dead_feature_window`` receive ghost gradients (App. A.1); or "none".
        normalize_activations: SAELens'; the other defaults are for activations of norm about √d_in, so that it is
            "expected_average_only_in" (App. A.1); "none" is for activations that are scaled already.
        decoder_init_norm: norm of the decoder rows that the encoder is initialised from.
        outlier_limit: a token further from the mean than this many times the median distance counts as little in losses
            and L0 as one at that distance; None counts all tokens alike. With it the first 16 steps only observe, and
            activations are then scaled by their median distance from the mean. What is saved for inference reads them
            as they are.

    Raises:
        ValueError: naming the field, its value and the remedy.
    """

    normalize_activations: Literal["none", "expected_average_only_in", "layer_norm", "covariance_whitening"] = (
        "expected_average_only_in"
    )
    level_widths: list[int] = field(default_factory=list)
    output_level: int = -1
    level_activation: Activation = "jumprelu"
    # On SAELens' command line a JSON number or list: its parser knows no "number or list" by itself.
    target_l0: float | list[float] = simple_parsing.field(default=50.0, type=json.loads)  # noqa: RUF009
    l0_width_exponent: float = 1 / 3
    structural_loss_coefficient: float = 0.02
    structural_loss_every: int = 8
    perturbation_rate: float = 0.0
    hierarchy_update_every: int = 5000
    hierarchy_first_update: int = 300
    hierarchy_similarity: Similarity = DEFAULT_RULE.similarity
    unassigned_fraction: float = DEFAULT_RULE.unassigned_fraction
    minimum_similarity: float | None = simple_parsing.field(default=DEFAULT_RULE.minimum_similarity, type=json.loads)
    max_children: int | None = DEFAULT_RULE.max_children
    freeze_hierarchy_after: int | None = None
    perturbation_seed: int = 0
    jumprelu_init_threshold: float = 1.0
    jumprelu_bandwidth: float = 1.0
    jumprelu_ste_to_input: bool = True
    sparsity_rate: float = 0.01
    sparsity_gain: float = 4.0
    l0_ema_momentum: float = 0.95
    dead_feature_loss: DeadFeatureLoss = "auxiliary"
    decoder_init_norm: float | None = 1.0
    outlier_limit: float | None = simple_parsing.field(default=3.0, type=json.loads)

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @property
    def levels(self) -> Levels:
        """Widths of the levels and their slices of the features."""
        return Levels(tuple(self.level_widths))

    def __post_init__(self) -> None:
        check_common(self)
        check_levels(self)
        check_training(self)
        super().__post_init__()

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> HierarchicalTrainingSAEConfig:
        """SAELens' ``from_dict``.

        Raises:
            ValueError: naming the field that is wrong or missing, or if this is the config of an inference model, which
                training cannot go on from.
        """
        check_dict(config_dict)
        if "target_l0" not in config_dict:
            raise ValueError(
                "target_l0 is missing: this is the config of a model saved for inference, which holds no state of "
                "training; give a checkpoint instead"
            )
        return super().from_dict(config_dict)

    @property
    def target_l0_per_level(self) -> tuple[float, ...]:
        """L̂0 of each level, coarse to fine."""
        if isinstance(self.target_l0, Sequence):
            return tuple(float(target) for target in self.target_l0)
        finest = self.level_widths[-1]
        return tuple(self.target_l0 * (width / finest) ** self.l0_width_exponent for width in self.level_widths)

    @property
    def parent_rule(self) -> ParentRule:
        """What makes a parent, as ``FeatureForest.from_saes`` takes it."""
        return ParentRule(
            self.hierarchy_similarity, self.minimum_similarity, self.unassigned_fraction, self.max_children
        )
