"""Difference of means: the baseline that needs no SAE, as a level sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae_lens_hsae.interpret.steering.examples import Examples
from sae_lens_hsae.interpret.steering.selection import Selection, selected


def difference_of_means(
    examples: Examples, level: int = -1, among: Sequence[int | str] | torch.Tensor | None = None
) -> Selection:
    """All features by their Δ activation; and, as `Selection.rest`, what they leave of the difference of the mean x.

    Together they are mean x of the positive texts less mean x of the negative ones, whatever the level.

    Arguments and errors as of `sta`; what ``among`` leaves out goes into the rest.
    """
    features = examples.of_level(level, among)
    weights = examples.difference[features]
    rest = examples.positive.x.mean(0) - examples.negative.x.mean(0) - weights @ examples.decoder[features]
    return selected(features, weights, level, examples.forest, rest=rest)
