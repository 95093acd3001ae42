"""SpARE (Zhao et al. 2024, arXiv 2410.15999): features that tell which set a text is of, set to what they are there."""

from __future__ import annotations

import math

import torch

from sae_lens_hsae.interpret.steering.examples import Examples
from sae_lens_hsae.interpret.steering.selection import Selection, selected

SHARE = 0.07
N_BINS = 3
"""Bins of a feature's activations where it is not 0, of equally many texts."""


def spare(examples: Examples, level: int = -1, among: torch.Tensor | None = None, share: float = SHARE) -> Selection:
    """The features of most mutual information with the set, up to ``share`` of the sum over all.

    x ← x − dec(min(z, z⁻)) + dec(max(z⁺ − z, 0)): features that are stronger on negative texts lose up to their mean
    z⁻ there, and those stronger on positive texts are raised to at least their mean z⁺ there. At strength s both means
    are multiplied by s.

    Arguments and errors as of `sta`, but ``share`` is of the mutual information of all features to choose from.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be above 0 and at most 1")
    features = examples.of_level(level, among)
    positive, negative = examples.positive.acts[:, features], examples.negative.acts[:, features]
    information = mutual_information(positive, negative)
    order = information.argsort(descending=True, stable=True)
    before = information[order].cumsum(0) - information[order]
    chosen = order[(before < share * information.sum()) & (information[order] > 0)]
    means = positive.mean(0), negative.mean(0)
    weights = torch.where(means[0] > means[1], means[0], -means[1])
    return selected(features[chosen], weights[chosen], level, examples.forest, bounds=True)


def mutual_information(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """(k,) in nats, of each feature's activation with the set; two sets (texts, k).

    Activations are taken as 0 or as one of three bins of equally many texts. The estimate from few texts is
    too high; Miller and Madow's correction, (values − 1)(sets − 1) / 2n, is taken off, down to 0.
    """
    acts = torch.cat([positive, negative]).double()
    own_set = torch.arange(len(acts)) < len(positive)
    bins = torch.zeros(acts.shape, dtype=torch.int64)
    for k, column in enumerate(acts.T):
        firing = column != 0
        if firing.any():
            edges = column[firing].quantile(torch.linspace(0, 1, N_BINS + 1, dtype=torch.float64)[1:-1])
            bins[firing, k] = 1 + torch.bucketize(column[firing], edges)
    counts = torch.stack(
        [torch.stack([(bins[of] == b).sum(0) for b in range(N_BINS + 1)]) for of in (own_set, ~own_set)]
    )
    joint = counts / len(acts)
    expected = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    found = torch.where(joint > 0, joint * (joint / expected).log(), 0).sum((0, 1))
    n_values = (counts.sum(0) > 0).sum(0)
    return (found - (n_values - 1) / (2 * len(acts))).clamp(min=0, max=math.log(2)).float()
