"""Selectors of features to steer by, from two sets of texts."""

from __future__ import annotations

import torch

from sae_lens_hsae.interpret.steering.examples import Examples
from sae_lens_hsae.interpret.steering.selection import Selection, selected

SHARE = 0.35


def sta(examples: Examples, level: int = -1, among: torch.Tensor | None = None, share: float = SHARE) -> Selection:
    """The features in the top ``share`` by |Δ activation| and by |Δ frequency|, where both have the same sign.

    v = Σ Δ activation · d, over the features kept: steering target atoms (Wang et al. 2025, arXiv 2505.20322).

    Args:
        examples: from `examples_of`.
        level: of the features; an IndexError if it does not exist.
        among: flat indices to choose from; None takes all of the level.
        share: of the features that differ at all; a ValueError if it is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be above 0 and at most 1")
    features = examples.of_level(level, among)
    strength = examples.difference[features]
    frequency = (examples.positive.firing.mean(0) - examples.negative.firing.mean(0))[features]
    kept = _top(strength, share) & _top(frequency, share) & (strength.sign() == frequency.sign())
    return selected(features[kept], strength[kept], level, examples.forest)


def _top(values: torch.Tensor, share: float) -> torch.Tensor:
    """(k,) which are in the top share of those that are not 0, by size; at least one."""
    sizes = values.abs()
    n = max(1, round(share * int((sizes > 0).sum())))
    return (sizes > 0) & (sizes >= sizes.sort(descending=True).values[n - 1])


def difference_of_means(examples: Examples, level: int = -1, among: torch.Tensor | None = None) -> Selection:
    """All features by their Δ activation; and, as `Selection.rest`, what they leave of the difference of the mean x.

    Together they are mean x of the positive texts less mean x of the negative ones, whatever the level: the baseline
    that needs no SAE, as a level sees it.

    Arguments and errors as of `sta`; what ``among`` leaves out goes into the rest.
    """
    features = examples.of_level(level, among)
    weights = examples.difference[features]
    rest = examples.positive.x.mean(0) - examples.negative.x.mean(0) - weights @ examples.decoder[features]
    return selected(features, weights, level, examples.forest, rest)
