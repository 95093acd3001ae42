"""Branching factor against clarity: do roots with several children score higher than roots with one? (HSAE §4)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from sae_lens_hsae.evaluation.cluster_bootstrap import Estimate, resampled_means
from sae_lens_hsae.forest import FeatureForest

N_RESAMPLES = 5000


@dataclass(frozen=True)
class Branching:
    """Mean scores of roots by their number of children, with 95 % bootstrap intervals over roots.

    Attributes:
        several, one, none: mean score of the roots with at least two children, with one, without any.
        n_several, n_one, n_none: roots of each kind that have a score.
        difference: ``several − one``.
        relative: ``several / one − 1``; NaN where the mean of ``one`` is not above 0.
    """

    several: Estimate
    one: Estimate
    none: Estimate
    n_several: int
    n_one: int
    n_none: int
    difference: Estimate
    relative: Estimate

    def __str__(self) -> str:
        kinds = (
            ("several children", self.several, self.n_several),
            ("one child", self.one, self.n_one),
            ("no child", self.none, self.n_none),
        )
        means = [f"{name}: {mean} ({n} roots)" for name, mean, n in kinds]
        return "\n".join([*means, f"several − one: {self.difference}, relative: {self.relative}"])


def branching(forest: FeatureForest, scores: torch.Tensor | ArrayLike) -> Branching:
    """Compare the scores of roots with several children and of roots with one.

    Roots are drawn with replacement, so the intervals say how the result varies over roots of this forest, not over
    trainings. It compares what is, and no cause: roots with several children also fire more often.

    Args:
        forest: who is whose parent; roots are the features of level 0.
        scores: (n_features,) any score per feature, such as ``label_detection(…).score``, ``parent_verdicts(…)`` or a
            column of a table; NaN for none.

    Raises:
        ValueError: if there is not one score per feature, or one is infinite.
    """
    if not isinstance(scores, torch.Tensor):
        scores = torch.from_numpy(np.array(scores, dtype=np.float64))
    if scores.shape != (len(forest),):
        raise ValueError(f"scores has shape {tuple(scores.shape)}; give one per feature, ({len(forest)},)")
    if scores.isinf().any():
        raise ValueError("scores holds infinity; give NaN for features without a score")
    roots = forest.roots()
    n_children = forest.n_children[roots]
    kinds = torch.stack([n_children >= 2, n_children == 1, n_children == 0], dim=1)
    values = scores[roots].double()[:, None].masked_fill(~kinds, torch.nan)
    means = resampled_means(values, torch.arange(len(roots)), N_RESAMPLES, torch.Generator().manual_seed(0))
    are_shares = bool(((values >= 0) & (values <= 1) | values.isnan()).all())
    several, one, none = (means.estimate(column, are_shares) for column in range(3))
    n_several, n_one, n_none = means.n_clusters.tolist()
    return Branching(
        several, one, none, n_several, n_one, n_none, means.difference(0, 1), means.relative_difference(0, 1)
    )
