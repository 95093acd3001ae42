"""Every check of a configuration's fields: what is wrong is named with its value and the remedy.

The configurations call these when they are made; which fields they have is told there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from typing import Any, Literal, get_args

import torch
from sae_lens.constants import DTYPE_MAP

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.parents import Similarity, check, is_update_due
from sae_lens_hsae.storage.json_files import is_count, is_number

ARCHITECTURE = "hsae"
OBSERVED_STEPS = 16
"""Steps at the start of a training that only observe: their batches make the statistics, and no parameter moves."""
Activation = Literal["jumprelu", "batchtopk"]
DeadFeatureLoss = Literal["auxiliary", "ghost", "none"]


def check_dict(config_dict: dict[str, Any]) -> None:
    """Refuse what SAELens' ``from_dict`` would answer with an error that names no field."""
    if config_dict.get("architecture") != ARCHITECTURE:
        raise ValueError(f"architecture={config_dict.get('architecture')!r} is not {ARCHITECTURE!r}")
    if missing := [name for name in ("d_in", "d_sae") if name not in config_dict]:
        raise ValueError(f"{' and '.join(missing)} missing; pass what to_dict() gave, unshortened")


def check_common(cfg: Any) -> None:
    """Check the fields that both configurations have, before SAELens makes use of them."""
    check(cfg, "d_in", _is_count(cfg.d_in), "it is the width of the activations: 1 or more")
    check(cfg, "d_sae", _is_count(cfg.d_sae), "it is the number of features of all levels together")
    check(cfg, "dtype", isinstance(cfg.dtype, str) and cfg.dtype in DTYPE_MAP, f"choose one of {', '.join(DTYPE_MAP)}")
    check(cfg, "device", _is_device(cfg.device), 'give the name of one, such as "cpu" or "cuda:0"')
    check(cfg, "apply_b_dec_to_input", isinstance(cfg.apply_b_dec_to_input, bool), "use True or False")
    reshape = cfg.reshape_activations in ("none", "hook_z")
    check(cfg, "reshape_activations", reshape, 'use "none" or "hook_z"')
    one_scale = 'the levels share one constant scale of the activations; use "none" or "expected_average_only_in"'
    scales = ("none", "expected_average_only_in")
    check(cfg, "normalize_activations", cfg.normalize_activations in scales, one_scale)
    check(cfg, "level_widths", isinstance(cfg.level_widths, (list, tuple)), "give a list of the levels' widths")


def check_levels(cfg: Any) -> None:
    """Check the levels and what refers to them; ``level_widths`` becomes a list of ints."""
    levels = Levels(tuple(cfg.level_widths))
    cfg.level_widths = list(levels.widths)
    n = levels.n_features
    total = f"level_widths={cfg.level_widths} add up to {n}, so set d_sae={n}"
    check(cfg, "d_sae", cfg.d_sae == n, f"it is the number of features of all levels together; {total}")
    n = len(levels)
    # True is no number of a level: as an index it would select all of them.
    whole = isinstance(cfg.output_level, int) and not isinstance(cfg.output_level, bool)
    exists = whole and -n <= cfg.output_level < n
    check(cfg, "output_level", exists, f"choose a level from {-n} to {n - 1}; −1 is the finest")


def check_training(cfg: Any) -> None:
    """Check the fields that only training has."""
    exponent = cfg.l0_width_exponent
    check(cfg, "l0_width_exponent", _within(exponent, 0, 1), "from 0, L0 as high everywhere, to 1, L0 like the width")
    if isinstance(cfg.target_l0, Sequence):
        targets = cfg.target_l0
    else:
        check(cfg, "target_l0", is_number(cfg.target_l0), "give one number, or one per level")
        targets = cfg.target_l0_per_level
    n = len(cfg.level_widths)
    check(cfg, "target_l0", len(targets) == n, f"give one number, or one per level: there are {n} levels")
    for level, (target, width) in enumerate(zip(targets, cfg.level_widths, strict=True)):
        remedy = f"level {level} has {width} features, so its target must be above 0 and at most {width}"
        check(cfg, "target_l0", is_number(target) and 0 < target <= width, remedy)
    rho, theta = cfg.structural_loss_coefficient, cfg.jumprelu_init_threshold
    check(cfg, "structural_loss_coefficient", _within(rho, 0, math.inf), "ρ must be 0 or more, and below 2^63")
    check(cfg, "jumprelu_init_threshold", _within(theta, 0, math.inf), "θ must be 0 or more, and below 2^63")
    check(cfg, "perturbation_rate", _within(cfg.perturbation_rate, 0, 1), "r is a probability, from 0 to 1")
    for name in ("structural_loss_every", "hierarchy_update_every", "hierarchy_first_update"):
        check(cfg, name, _is_count(getattr(cfg, name)), "it counts steps: 1 or more")
    of_literals = {
        "level_activation": Activation,
        "hierarchy_similarity": Similarity,
        "dead_feature_loss": DeadFeatureLoss,
    }
    for name, choices in of_literals.items():
        known = get_args(choices)
        check(cfg, name, getattr(cfg, name) in known, f"choose one of {', '.join(map(repr, known))}")
    _ = cfg.parent_rule  # which checks itself
    first, last = cfg.hierarchy_first_update, cfg.freeze_hierarchy_after
    if last is not None:
        check(cfg, "freeze_hierarchy_after", _is_count(last), "it is a step, 1 or more, or None to keep updating")
        never = f"the first forest is made at step {first}, so no feature would ever have a parent"
        check(cfg, "freeze_hierarchy_after", last >= first, f"{never}; freeze at {first} or later")
        # At the first step after those that observe nothing has been counted yet.
        least = first if cfg.outlier_limit is None else OBSERVED_STEPS + cfg.parent_rule.is_measured
        due = next(step for step in count(max(first, least)) if is_update_due(step, first, cfg.hierarchy_update_every))
        observes = f"the first {OBSERVED_STEPS} steps only observe, so the first forest is made at step {due}"
        check(
            cfg, "freeze_hierarchy_after", last >= due, f"{observes}; freeze then or later, or set outlier_limit=None"
        )
    check(cfg, "jumprelu_ste_to_input", isinstance(cfg.jumprelu_ste_to_input, bool), "use True or False")
    limit = cfg.outlier_limit
    fits = limit is None or (is_number(limit) and limit >= 1)
    check(cfg, "outlier_limit", fits, "it is a multiple of the median distance: 1 or more, or None")
    seed = cfg.perturbation_seed
    check(cfg, "perturbation_seed", is_count(seed), "give a whole number from 0 on, below 2^63")
    norm = cfg.decoder_init_norm
    fits = norm is None or (is_number(norm) and norm > 0)
    check(cfg, "decoder_init_norm", fits, "it must be above 0, or None; below 2^63")
    for name in ("jumprelu_bandwidth", "sparsity_rate", "sparsity_gain"):
        value = getattr(cfg, name)
        check(cfg, name, is_number(value) and value > 0, "it must be above 0, and below 2^63")
    momentum = cfg.l0_ema_momentum
    check(cfg, "l0_ema_momentum", _within(momentum, 0, 1) and momentum < 1, "it must be at least 0 and below 1")


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False


def _within(value: Any, low: float, high: float) -> bool:
    return is_number(value) and low <= value <= high


def _is_count(value: Any) -> bool:
    return is_count(value) and value >= 1
