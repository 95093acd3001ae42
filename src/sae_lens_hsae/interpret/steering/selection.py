"""What a selector of features gives: features of one level, a weight for each, and how they act."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.feature_forest import candidates_below
from sae_lens_hsae.interpret.steering.edits import Edit, add
from sae_lens_hsae.interpret.steering.examples import Examples
from sae_lens_hsae.interpret.steering.steer import steer


@dataclass(frozen=True, eq=False)
class Selection:
    """Features to steer by, all of one level; the strongest first.

    Attributes:
        features: flat indices.
        weights: of each, in units of its activation. At strength s a feature's activation changes by s times this.
        level: of the features, from the coarsest.
        rest: (d_in,) what is added to x beside the features, times the strength; None for nothing.
    """

    features: tuple[int, ...]
    weights: tuple[float, ...]
    level: int
    rest: torch.Tensor | None = field(default=None, repr=False)

    def edits(self, strength: float) -> list[Edit]:
        """The changes of the features' activations, for `steer`.

        Raises:
            ValueError: if there is no feature, or the strength is not a finite number.
        """
        if not self.features:
            raise ValueError("nothing was selected, so there is nothing to steer by; give texts that differ more")
        return [add(f, strength * weight) for f, weight in zip(self.features, self.weights, strict=True)]


def selected(
    features: torch.Tensor, weights: torch.Tensor, level: int, forest: FeatureForest, rest: torch.Tensor | None = None
) -> Selection:
    """A selection of these features (k,), by falling size of their weights (k,); features of weight 0 are left out."""
    order = weights.abs().argsort(descending=True, stable=True)
    order = order[weights[order] != 0]
    return Selection(tuple(features[order].tolist()), tuple(weights[order].tolist()), forest.levels.number(level), rest)


@contextmanager
def steer_by(
    model: Any,
    levels: Sequence[SAE[Any]] | SAE[Any],
    selection: Selection,
    strength: float = 1.0,
    forest: FeatureForest | None = None,
) -> Iterator[None]:
    """`steer` by what a selector gave; other arguments and errors are as there, and nothing selected is a ValueError.

    ``strength`` 1 makes as large a change as the two sets of texts differ by, in the features selected.
    """
    rest = None if selection.rest is None else strength * selection.rest
    with steer(model, levels, selection.edits(strength), forest, rest=rest):
        yield


Selector = Callable[..., Selection]


def descend(selector: Selector, examples: Examples, level: int = -1, **options: Any) -> Selection:
    """Select level by level from the coarsest, each time only among the children of what was selected above.

    It ends at ``level``; ``options`` and errors are the selector's, such as `sta` or `difference_of_means`. Features
    without a parent are among the candidates everywhere, since nothing coarser stands for them.
    """
    found = selector(examples, 0, **options)
    for below in range(1, examples.forest.levels.number(level) + 1):
        own = examples.of_level(below)
        above = torch.zeros(examples.forest.n_features, dtype=torch.bool)
        above[list(found.features)] = True
        candidates = own[candidates_below(examples.forest, below, above)]
        if not len(candidates):
            found = replace(found, features=(), weights=(), level=below, rest=None)
            continue
        found = selector(examples, below, candidates, **options)
    return found
