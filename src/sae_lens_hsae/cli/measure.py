"""A measurement at the end of a training: what a sweep chooses by."""

from __future__ import annotations

from itertools import count
from math import nan
from statistics import mean

import wandb

from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest
from sae_lens_hsae.hub.saved_model import save_evaluation
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner

METRICS = ("forest/hamming_at_matched_variance", "forest/hamming", "forest/variance_explained")
"""What a sweep can choose by."""
HAMMING_PER_VARIANCE = 1000.0
"""Price of missing variance: 0.01 below the floor costs as much as 10 disagreements per token."""


def measure(
    runner: HierarchicalSAETrainingRunner, sae: HierarchicalTrainingSAE, n_tokens: int, variance_floor: float
) -> ForestEvaluation:
    """Run `evaluate_forest` on a trained SAE; the text goes on where training stopped.

    The result also goes beside the model as ``evaluation.json``, and to W&B's summary of the run as ``forest/…`` (see
    `summary`).
    """
    activations = (runner.activations_store.get_filtered_llm_batch() for _ in count())
    with runner.nothing_fetched_ahead():
        evaluation = evaluate_forest(sae, sae.forest, activations, n_tokens)
    if wandb.run is not None and runner.cfg.logger.log_to_wandb:
        wandb.run.summary.update(summary(evaluation, variance_floor))
    if runner.cfg.output_path is not None:
        save_evaluation(evaluation, sae, runner.cfg.output_path)
    return evaluation


def summary(evaluation: ForestEvaluation, variance_floor: float) -> dict[str, float]:
    """The means over levels and boundaries by which a sweep chooses; NaN if one of them is undefined.

    Parents and children agree ever better the less the levels care to reconstruct, so the Hamming distance alone would
    choose the worst SAE. ``forest/hamming_at_matched_variance`` adds a price for every bit of variance explained below
    a floor: the exact penalty of "least Hamming, with the variance explained at least the floor". That may be the mean
    of independent SAEs of the same widths and L0, less what the forest may cost.
    """
    of_boundaries = [boundary.hamming for boundary in evaluation.boundaries]
    hamming = mean(of_boundaries) if of_boundaries else nan
    variance = sum(level.variance_explained for level in evaluation.levels) / len(evaluation.levels)
    at_matched = hamming + HAMMING_PER_VARIANCE * max(variance_floor - variance, 0.0)
    return dict(zip(METRICS, (at_matched, hamming, variance), strict=True))
