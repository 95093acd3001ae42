"""Configurations of the architecture ``hsae``, and every check of their fields; no tensors here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import simple_parsing
import torch
from sae_lens.constants import DTYPE_MAP
from sae_lens.saes.sae import SAEConfig, SAEMetadata, TrainingSAEConfig
from typing_extensions import override

from sae_lens_hsae.levels import Levels
from sae_lens_hsae.storage.json_files import is_count

ARCHITECTURE = "hsae"
MAX_WEIGHTS = 2**48
"""Entries of the encoder beyond which sizes are nonsense; below it they can be computed with."""
Similarity = Literal["encoder", "decoder", "coactivation", "conditional"]
LevelActivationName = Literal["jumprelu", "batchtopk"]
MEASURED_ON_ACTIVATIONS = ("coactivation", "conditional")
"""Similarities that parameters alone do not give."""


@dataclass
class HierarchicalSAEConfig(SAEConfig):
    """Configuration of a :class:`HierarchicalSAE` for inference.

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

    def __post_init__(self) -> None:
        _check_common(self)
        super().__post_init__()
        _check_levels(self)

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> HierarchicalSAEConfig:
        """SAELens' ``from_dict``, for a dict that may come from anybody.

        Raises:
            ValueError: naming the field that is wrong or missing, and the remedy.
        """
        _check_dict(config_dict)
        config = super().from_dict(config_dict)
        assert isinstance(config, HierarchicalSAEConfig)
        return config


@dataclass(kw_only=True)
class HierarchicalTrainingSAEConfig(TrainingSAEConfig):
    """Configuration for training a :class:`HierarchicalTrainingSAE` (HSAE, arXiv 2602.11881).

    Args:
        level_widths: n_l, features per level, coarse to fine, strictly increasing; they add up to ``d_sae``.
        output_level: the level that ``decode`` and ``forward`` reconstruct from; −1 is the finest.
        level_activation: "jumprelu", whose L0 λ steers to the target, or "batchtopk", whose L0 is exact; both are saved
            as JumpReLU levels.
        target_l0: L̂0, active features per token at every level: one number, or one per level.
        structural_loss_coefficient: ρ, weight of the parent–children loss L_PC (§3.1).
        structural_loss_decay: steps [first, last] between which ρ falls linearly to 0; None keeps it constant.
        perturbation_rate: r, probability with which a parent's contribution is replaced by its children's in
            the reconstruction of its level, drawn per feature and step (§3.2).
        hierarchy_update_every: steps between two updates of the forest (§3.3).
        hierarchy_first_update: step of the first forest; until ``hierarchy_update_every`` the interval doubles.
        hierarchy_similarity: what makes a parent similar to a child: cosine of their "encoder" or "decoder"
            directions, or "coactivation", the share of tokens on which both are active (§3.3), or "conditional",
            P(parent | child) − P(parent) of parents that fire at least as often as the child.
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
        ghost_gradients: whether features dead by the trainer's ``dead_feature_window`` receive ghost gradients.
        normalize_activations: SAELens'; the other defaults are for activations of norm about √d_in, so that it is
            "expected_average_only_in" (App. A.1); "none" is for activations that are scaled already.
        decoder_init_norm: norm of the decoder rows that the encoder is initialised from.
        whiten_encoder: whether the encoder learns in whitened coordinates of the activations, centred by their mean;
            ``apply_b_dec_to_input`` is then off. What is saved for inference reads activations as they are.

    Raises:
        ValueError: naming the field, its value and the remedy.
    """

    normalize_activations: Literal["none", "expected_average_only_in", "layer_norm", "covariance_whitening"] = (
        "expected_average_only_in"
    )
    level_widths: list[int] = field(default_factory=list)
    output_level: int = -1
    level_activation: LevelActivationName = "jumprelu"
    # On SAELens' command line a JSON number or list: its parser knows no "number or list" by itself.
    target_l0: float | list[float] = simple_parsing.field(default=50.0, type=json.loads)  # noqa: RUF009
    structural_loss_coefficient: float = 0.03
    structural_loss_decay: list[int] | None = simple_parsing.field(default=None, type=json.loads, nargs=None)  # noqa: RUF009
    perturbation_rate: float = 0.0
    hierarchy_update_every: int = 5000
    hierarchy_first_update: int = 100
    hierarchy_similarity: Similarity = "conditional"
    unassigned_fraction: float = 0.0
    minimum_similarity: float | None = simple_parsing.field(default=0.4, type=json.loads)
    max_children: int | None = None
    freeze_hierarchy_after: int | None = None
    perturbation_seed: int = 0
    jumprelu_init_threshold: float = 1.0
    jumprelu_bandwidth: float = 1.5
    jumprelu_ste_to_input: bool = True
    sparsity_rate: float = 0.01
    sparsity_gain: float = 4.0
    l0_ema_momentum: float = 0.95
    ghost_gradients: bool = True
    decoder_init_norm: float | None = 1.0
    whiten_encoder: bool = True

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def __post_init__(self) -> None:
        _check_common(self)
        _check_levels(self)
        _check_training(self)
        if self.whiten_encoder:
            self.apply_b_dec_to_input = False
        super().__post_init__()

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> HierarchicalTrainingSAEConfig:
        """SAELens' ``from_dict``.

        Raises:
            ValueError: naming the field that is wrong or missing, or if this is the config of an inference model, which
                training cannot go on from.
        """
        _check_dict(config_dict)
        if "target_l0" not in config_dict:
            raise ValueError(
                "target_l0 is missing: this is the config of a model saved for inference, which holds no state of "
                "training; give a checkpoint instead"
            )
        config = super().from_dict(config_dict)
        assert isinstance(config, HierarchicalTrainingSAEConfig)
        return config

    @property
    def target_l0_per_level(self) -> tuple[float, ...]:
        """L̂0 of each level, coarse to fine."""
        if isinstance(self.target_l0, Sequence):
            return tuple(float(target) for target in self.target_l0)
        return (float(self.target_l0),) * len(self.level_widths)


def _check(cfg: object, name: str, holds: bool, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(cfg, name)!r}: {remedy}")


def _check_dict(config_dict: Any) -> None:
    """Refuse what SAELens' ``from_dict`` would answer with an error that names no field."""
    if not isinstance(config_dict, dict):
        raise ValueError(f"a configuration is a dict, not {type(config_dict).__name__}; pass what to_dict() gave")
    if config_dict.get("architecture") != ARCHITECTURE:
        raise ValueError(f"architecture={config_dict.get('architecture')!r} is not {ARCHITECTURE!r}")
    if missing := [name for name in ("d_in", "d_sae") if name not in config_dict]:
        raise ValueError(f"{' and '.join(missing)} missing; pass what to_dict() gave, unshortened")
    _check_metadata(config_dict.get("metadata", {}))


def _check_metadata(metadata: Any) -> None:
    # SAELens hands them over as a dict first, and makes each entry an attribute, which must not hide a method.
    if isinstance(metadata, SAEMetadata):
        return
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata={metadata!r} is no dict; pass what to_dict() gave")
    taken = [name for name in metadata if not isinstance(name, str) or name == "self" or hasattr(SAEMetadata, name)]
    if taken:
        raise ValueError(f"metadata has an entry {taken[0]!r}, which is no name for one; leave it out")


def _check_common(cfg: HierarchicalSAEConfig | HierarchicalTrainingSAEConfig) -> None:
    _check(cfg, "d_in", _is_count(cfg.d_in), "it is the width of the activations: 1 or more")
    _check(cfg, "d_sae", _is_count(cfg.d_sae), "it is the number of features of all levels together")
    large = f"with d_sae={cfg.d_sae} no memory holds the weights; give the widths of the model and of the levels"
    _check(cfg, "d_in", cfg.d_in * cfg.d_sae < MAX_WEIGHTS, large)
    _check(cfg, "dtype", isinstance(cfg.dtype, str) and cfg.dtype in DTYPE_MAP, f"choose one of {', '.join(DTYPE_MAP)}")
    _check(cfg, "device", _is_device(cfg.device), 'give the name of one, such as "cpu" or "cuda:0"')
    _check(cfg, "apply_b_dec_to_input", isinstance(cfg.apply_b_dec_to_input, bool), "use True or False")
    reshape = cfg.reshape_activations in ("none", "hook_z")
    _check(cfg, "reshape_activations", reshape, 'use "none" or "hook_z"')
    _check(
        cfg,
        "normalize_activations",
        cfg.normalize_activations in ("none", "expected_average_only_in"),
        'the levels share one constant scale of the activations; use "none" or "expected_average_only_in"',
    )
    _check_metadata(cfg.metadata)
    _check(cfg, "level_widths", isinstance(cfg.level_widths, (list, tuple)), "give a list of the levels' widths")


def _check_levels(cfg: HierarchicalSAEConfig | HierarchicalTrainingSAEConfig) -> None:
    levels = Levels(cfg.level_widths)  # type: ignore[arg-type]
    cfg.level_widths = list(levels.widths)
    _check(
        cfg,
        "d_sae",
        cfg.d_sae == levels.n_features,
        f"it is the number of features of all levels together; level_widths={cfg.level_widths} add up to "
        f"{levels.n_features}, so set d_sae={levels.n_features}",
    )
    n = len(levels)
    exists = isinstance(cfg.output_level, int) and -n <= cfg.output_level < n
    _check(cfg, "output_level", exists, f"choose a level from {-n} to {n - 1}; −1 is the finest")


def _check_training(cfg: HierarchicalTrainingSAEConfig) -> None:
    targets = cfg.target_l0 if isinstance(cfg.target_l0, Sequence) else [cfg.target_l0] * len(cfg.level_widths)
    _check(
        cfg,
        "target_l0",
        len(targets) == len(cfg.level_widths),
        f"give one number, or one per level: there are {len(cfg.level_widths)} levels",
    )
    for level, (target, width) in enumerate(zip(targets, cfg.level_widths, strict=True)):
        _check(
            cfg,
            "target_l0",
            _is_number(target) and 0 < target <= width,
            f"level {level} has {width} features, so its target must be above 0 and at most {width}",
        )
    _check(
        cfg,
        "level_activation",
        cfg.level_activation in get_args(LevelActivationName),
        f"choose one of {', '.join(map(repr, get_args(LevelActivationName)))}",
    )
    rho = "structural_loss_coefficient"
    _check(
        cfg,
        rho,
        _is_number(cfg.structural_loss_coefficient) and cfg.structural_loss_coefficient >= 0,
        "ρ must be 0 or more",
    )
    decay = cfg.structural_loss_decay
    _check(
        cfg,
        "structural_loss_decay",
        decay is None or (len(decay) == 2 and all(map(_is_number, decay)) and 0 <= decay[0] < decay[1]),
        "give two steps, the first before the last, or None for a constant ρ",
    )
    _check(cfg, "perturbation_rate", _within(cfg.perturbation_rate, 0, 1), "r is a probability, from 0 to 1")
    _check(cfg, "hierarchy_update_every", _is_count(cfg.hierarchy_update_every), "it counts steps: 1 or more")
    _check(cfg, "hierarchy_first_update", _is_count(cfg.hierarchy_first_update), "it counts steps: 1 or more")
    _check(
        cfg,
        "hierarchy_similarity",
        cfg.hierarchy_similarity in get_args(Similarity),
        f"choose one of {', '.join(map(repr, get_args(Similarity)))}",
    )
    _check(
        cfg,
        "unassigned_fraction",
        _within(cfg.unassigned_fraction, 0, 1) and cfg.unassigned_fraction < 1,
        "it is a share of the children, at least 0 and below 1",
    )
    _check(
        cfg,
        "max_children",
        cfg.max_children is None or _is_count(cfg.max_children),
        "use 1 or more, or None for no limit",
    )
    _check(
        cfg,
        "freeze_hierarchy_after",
        cfg.freeze_hierarchy_after is None or _is_count(cfg.freeze_hierarchy_after),
        "it is a step, 1 or more, or None to keep updating",
    )
    first = min(cfg.hierarchy_first_update, cfg.hierarchy_update_every)
    _check(
        cfg,
        "freeze_hierarchy_after",
        cfg.freeze_hierarchy_after is None or cfg.freeze_hierarchy_after >= first,
        f"the first forest is made at step {first}, so no feature would ever have a parent; freeze at {first} or later",
    )
    bar = cfg.minimum_similarity
    _check(cfg, "minimum_similarity", bar is None or _is_number(bar), "give a number, or None for no bar")
    _check(
        cfg,
        "minimum_similarity",
        bar is None or bar < 0.1 or cfg.hierarchy_similarity != "coactivation",
        'of "coactivation" it is a share of all tokens, which hardly any pair exceeds; use None',
    )
    for name in ("jumprelu_ste_to_input", "ghost_gradients", "whiten_encoder"):
        _check(cfg, name, isinstance(getattr(cfg, name), bool), "use True or False")
    seed = cfg.perturbation_seed
    _check(cfg, "perturbation_seed", is_count(seed) and seed < 2**63, "give a whole number from 0 on, below 2^63")
    norm = cfg.decoder_init_norm
    _check(cfg, "decoder_init_norm", norm is None or (_is_number(norm) and norm > 0), "it must be above 0, or None")
    for name in ("jumprelu_bandwidth", "sparsity_rate", "sparsity_gain"):
        value = getattr(cfg, name)
        _check(cfg, name, _is_number(value) and value > 0, "it must be above 0")
    _check(
        cfg,
        "jumprelu_init_threshold",
        _is_number(cfg.jumprelu_init_threshold) and cfg.jumprelu_init_threshold >= 0,
        "θ must be 0 or more",
    )
    _check(
        cfg,
        "l0_ema_momentum",
        _within(cfg.l0_ema_momentum, 0, 1) and cfg.l0_ema_momentum < 1,
        "it must be at least 0 and below 1",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False


def _within(value: Any, low: float, high: float) -> bool:
    return _is_number(value) and low <= value <= high


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
