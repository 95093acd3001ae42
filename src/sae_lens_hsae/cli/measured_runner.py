"""Our runner with a measurement at its end: what a sweep chooses by."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from statistics import mean
from typing import Any

import torch
import wandb
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest
from sae_lens_hsae.hub.saved_model import save_evaluation
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner

HAMMING_PER_VARIANCE = 1000.0
"""Price of missing variance: 0.01 below the floor costs as much as 10 disagreements per token."""


class MeasuredTrainingRunner(HierarchicalSAETrainingRunner):
    """`HierarchicalSAETrainingRunner` that runs `evaluate_forest`, on this many tokens, when training is done.

    The text goes on where training stopped. The result stands in ``evaluation``, beside the model as
    ``evaluation.json``, and in W&B's summary of the run as ``forest/…`` (see `summary`).
    """

    evaluation: ForestEvaluation | None = None

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[HierarchicalTrainingSAEConfig],
        *,
        evaluation_tokens: int,
        variance_floor: float = 0.0,
        **overrides: Any,
    ) -> None:
        if evaluation_tokens < 1:
            raise ValueError(f"evaluation_tokens={evaluation_tokens} must be at least 1; 50000 is a good number")
        if not 0 <= variance_floor <= 1:
            raise ValueError(f"variance_floor={variance_floor} must be a share of the variance, from 0 to 1")
        super().__init__(cfg, **overrides)
        self.evaluation_tokens = evaluation_tokens
        self.variance_floor = variance_floor

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> TrainingSAE[Any]:
        sae = super().run_trainer_with_interruption_handling(trainer)
        if self.cfg.output_path is None:
            self._measure(sae)
        return sae

    def _measure(self, sae: TrainingSAE[Any]) -> ForestEvaluation | None:
        """Measure, where this process is the first; the model is safe by then, if it is to be saved at all."""
        assert isinstance(sae, HierarchicalTrainingSAE)
        if not self.is_first:
            return None
        with self.nothing_fetched_ahead():
            self.evaluation = evaluate_forest(sae, sae.forest, self._activations(), self.evaluation_tokens)
        if wandb.run is not None and self.cfg.logger.log_to_wandb:
            wandb.run.summary.update(summary(self.evaluation, self.variance_floor))
        return self.evaluation

    @override
    def save_final_sae(
        self, sae: TrainingSAE[Any], output_path: str, log_feature_sparsity: torch.Tensor | None = None
    ) -> None:
        super().save_final_sae(sae, output_path, log_feature_sparsity)
        evaluation = self._measure(sae)
        if evaluation is not None:
            assert isinstance(sae, HierarchicalTrainingSAE)
            save_evaluation(evaluation, sae, output_path)

    def _activations(self) -> Iterator[torch.Tensor]:
        while True:
            yield self.activations_store.get_filtered_llm_batch()


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
    return {
        "forest/hamming_at_matched_variance": hamming + HAMMING_PER_VARIANCE * max(0.0, variance_floor - variance),
        "forest/hamming": hamming,
        "forest/variance_explained": variance,
    }
