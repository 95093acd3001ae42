"""What is done to a feature, and to which features of its family.

A parent is the sum of its children (HSAE §3.1), and every level reconstructs x anew. An edit of a whole subtree
therefore acts on the subtree's leaves alone: to act on their ancestors as well would do the same thing twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.post_hoc import have_either_sign

On = Literal["feature", "children", "subtree"]
Kind = Literal["add", "scale", "clamp"]


@dataclass(frozen=True)
class Edit:
    """One change of a feature, by flat index or name; see `add`, `scale`, `clamp` and `ablate`.

    Raises:
        ValueError: if a field has an unknown or infinite value, or an activation is meant for several features.
    """

    feature: int | str
    kind: Kind
    value: float
    on: On = "feature"

    def __post_init__(self) -> None:
        if self.on not in ("feature", "children", "subtree"):
            raise ValueError(f"on={self.on!r} must be 'feature', 'children' or 'subtree'")
        if not math.isfinite(self.value):
            raise ValueError(f"{self.kind} of feature {self.feature}: value={self.value} must be a finite number")
        if self.kind == "clamp" and self.on != "feature":
            raise ValueError(f"clamp of feature {self.feature}: on={self.on!r}; clamp each feature by itself")


def add(feature: int | str, amount: float, on: On = "feature") -> Edit:
    """Raise the feature's activation by ``amount``, on every token.

    With ``on="children"`` or ``"subtree"`` a push of the same norm goes along the children (the leaves of the subtree)
    together, each in proportion to its typical activation.
    """
    return Edit(feature, "add", amount, on)


def scale(feature: int | str, factor: float, on: On = "feature") -> Edit:
    """Multiply the activation of the feature, of each of its children, or of each leaf of its subtree."""
    return Edit(feature, "scale", factor, on)


def clamp(feature: int | str, value: float) -> Edit:
    """Set the feature's activation to ``value`` on every token."""
    return Edit(feature, "clamp", value)


def ablate(feature: int | str, on: On = "feature") -> Edit:
    """Set to 0 the activation of the feature, of each of its children, or of each leaf of its subtree."""
    return scale(feature, 0.0, on)


@dataclass(frozen=True)
class Step:
    """An edit of features of one level: their numbers within it and a value for each."""

    level: int
    kind: Kind
    features: torch.Tensor
    values: torch.Tensor

    def changed(self, acts: torch.Tensor) -> torch.Tensor:
        """(…, k) of the features' activations (…, k) before the step."""
        values = self.values.to(acts)
        if self.kind == "add":
            return acts + values
        if self.kind == "scale":
            return acts * values
        return values.expand_as(acts)


def steps_of(
    edits: Sequence[Edit], saes: Sequence[Any], forest: FeatureForest, typical: torch.Tensor | None
) -> list[Step]:
    """Edits as steps on single levels, in the order of the edits; a run of one kind on different features is one step.

    ``typical`` (n_features,) is needed to spread a push over features. An IndexError if a feature does not exist, a
    ValueError if there is no edit, one is meant for children that do not exist, or a push cannot be spread: ``typical``
    is missing, of another length or 0 for all of them, or features fire with either sign.
    """
    if not edits:
        raise ValueError("edits is empty; give at least one, such as [ablate(12)]")
    steps = []
    for edit in edits:
        features = torch.tensor(_reached(edit, forest))
        values = torch.full((len(features),), float(edit.value))
        if edit.kind == "add" and edit.on != "feature":
            values = _spread(edit, features, saes, forest, typical)
        level_of = forest.levels.level_of(features)
        for level in level_of.unique().tolist():
            own = level_of == level
            steps.append(Step(level, edit.kind, features[own] - forest.levels.offsets[level], values[own]))
    return _joined(steps)


def _joined(steps: Sequence[Step]) -> list[Step]:
    runs: list[list[Step]] = []
    seen: set[int] = set()
    for step in steps:
        own = set(step.features.tolist())
        if runs and (runs[-1][0].level, runs[-1][0].kind) == (step.level, step.kind) and not seen & own:
            runs[-1].append(step)
            seen |= own
        else:
            runs.append([step])
            seen = own
    tables = [[torch.cat([getattr(step, name) for step in run]) for name in ("features", "values")] for run in runs]
    return [Step(run[0].level, run[0].kind, *table) for run, table in zip(runs, tables, strict=True)]


def _reached(edit: Edit, forest: FeatureForest) -> list[int]:
    if edit.on == "feature":
        return [forest.index(edit.feature)]
    children = forest.children(edit.feature)
    if edit.on == "children":
        if not children:
            raise ValueError(f"feature {edit.feature} has no children; use on='feature'")
        return children
    return [feature for feature in forest.subtree(edit.feature) if not forest.children(feature)]


def _spread(
    edit: Edit, features: torch.Tensor, saes: Sequence[Any], forest: FeatureForest, typical: torch.Tensor | None
) -> torch.Tensor:
    if typical is None or typical.shape != (len(forest),):
        raise ValueError(
            f"add(…, on={edit.on!r}) is spread by typical activations; pass typical of shape ({len(forest)},), such as "
            "Dashboards.mean_activation, to steer()"
        )
    if have_either_sign(saes):
        raise ValueError(
            f"add(…, on={edit.on!r}): features of these SAEs fire with either sign, so their typical size does not say "
            "which way to push; push each by itself"
        )
    weights = typical[features].float()
    pushed = torch.stack([_direction(feature, saes, forest) for feature in features.tolist()])
    norm = (weights[:, None] * pushed).sum(0).norm()
    if not norm > 0:
        raise ValueError(f"typical is 0 for all of {features.tolist()[:5]}, so nothing says how to spread the push")
    return edit.value * _direction(forest.index(edit.feature), saes, forest).norm() * weights / norm


def _direction(feature: int, saes: Sequence[Any], forest: FeatureForest) -> torch.Tensor:
    level = int(forest.levels.level_of(torch.tensor(feature)))
    return saes[level].W_dec[feature - forest.levels.offsets[level]].detach().float().cpu()
