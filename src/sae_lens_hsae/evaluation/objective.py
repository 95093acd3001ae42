"""One number by which a sweep can choose: the Hamming distance at matched variance explained."""

from __future__ import annotations

from sae_lens_hsae.evaluation.results import ForestEvaluation

HAMMING_PER_VARIANCE = 1000.0
"""Price of missing variance: 0.01 below the floor costs as much as 10 disagreements per token."""


def mean_hamming(evaluation: ForestEvaluation) -> float:
    """Hamming distance, the mean over the level boundaries; NaN if it is undefined at one of them."""
    return sum(boundary.hamming for boundary in evaluation.boundaries) / len(evaluation.boundaries)


def mean_variance_explained(evaluation: ForestEvaluation) -> float:
    """Variance explained, the mean over the levels."""
    return sum(level.variance_explained for level in evaluation.levels) / len(evaluation.levels)


def hamming_at_matched_variance(evaluation: ForestEvaluation, variance_floor: float) -> float:
    """Hamming distance, plus a price for every bit of variance explained below a floor; lower is better.

    Parents and children agree ever better the less the levels care to reconstruct, so the Hamming distance alone would
    choose the worst SAE. This is the exact penalty of "least Hamming, with the variance explained at least the floor".

    Args:
        evaluation: of one stack of at least two levels.
        variance_floor: mean variance explained of the levels that must be reached, such as that of independent SAEs of
            the same widths and L0, less what the forest may cost.
    """
    shortfall = max(0.0, variance_floor - mean_variance_explained(evaluation))
    return mean_hamming(evaluation) + HAMMING_PER_VARIANCE * shortfall
