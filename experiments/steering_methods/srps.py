"""Role-play steering (arXiv 2506.07335): features by strength and by how many texts they occur in, at a kept norm."""

from __future__ import annotations

import math

import torch

from sae_lens_hsae.interpret.steering.examples import Examples
from sae_lens_hsae.interpret.steering.selection import Selection, selected

N_FEATURES = 15
BETA = 1.0
OCCURS = 0.1
"""A feature occurs in a text if its mean activation there is above this share of the feature's greatest.

The paper has an activation of 0.1; activations of a level have no fixed scale."""


def srps(
    examples: Examples,
    level: int = -1,
    among: torch.Tensor | None = None,
    n_features: int = N_FEATURES,
    beta: float = BETA,
) -> Selection:
    """The features of highest score Δμ + β Δδ: the rise of the mean activation and of the share of texts it occurs in.

    Δμ is in units of the largest |Δμ|, so that β weighs two numbers between −1 and 1. Features whose mean does not rise
    are left out. x + s Σ Δμ d is given the length of x again.

    Arguments and errors as of `sta`, and:

    Args:
        n_features: how many, at most.
        beta: weight of the occurrence.

    Raises:
        ValueError: if ``n_features`` is below 1 or ``beta`` below 0.
    """
    if n_features < 1:
        raise ValueError(f"n_features={n_features} must be at least 1")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta={beta} must be 0 or more")
    features = examples.of_level(level, among)
    difference = examples.difference[features]
    positive, negative = examples.positive.acts[:, features], examples.negative.acts[:, features]
    limit = OCCURS * torch.cat([positive, negative]).max(0).values
    occurring = (positive > limit).float().mean(0) - (negative > limit).float().mean(0)
    score = difference / difference.abs().max().clamp(min=1e-12) + beta * occurring
    score[difference <= 0] = -math.inf
    best = score.topk(min(n_features, len(score))).indices
    best = best[score[best] > 0]
    return selected(features[best], difference[best], level, examples.forest, keep_norm=True)
