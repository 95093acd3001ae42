"""SAELens' runner with our trainer and store in the places of its own."""

from __future__ import annotations

import signal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import logger
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.forest_log import ForestLog, ForestLogging
from sae_lens_hsae.resumable_store import ResumableActivationsStore
from sae_lens_hsae.trainer import HierarchicalSAETrainer
from sae_lens_hsae.training_sae import HierarchicalTrainingSAE, check_architecture

if TYPE_CHECKING:
    from transformer_lens import HookedRootModule


class HierarchicalSAETrainingRunner(LanguageModelSAETrainingRunner):
    """Trains a ``HierarchicalTrainingSAE`` on a language model.

    The same batches and losses as SAELens' ``LanguageModelSAETrainingRunner`` for the same seed. Beyond it,
    a run stopped by SIGINT or SIGTERM writes a checkpoint after its current step, and a resumed run sees
    the batches and takes the steps that the uninterrupted one would have.

    Args:
        cfg: SAELens' config with a :class:`HierarchicalTrainingSAEConfig` in ``sae``.
        forest_logging: what of the forest goes to W&B, beyond the curves; None is nothing.

    Raises:
        ValueError: if ``cfg.sae`` is of another architecture, prefetching is on while checkpoints are to be written, or
            the forest cannot be logged as asked for.
    """

    @override
    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[HierarchicalTrainingSAEConfig],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        forest_logging: ForestLogging | None = None,
    ) -> None:
        if not isinstance(cfg.sae, HierarchicalTrainingSAEConfig):
            raise ValueError(
                f"sae={type(cfg.sae).__name__} is not a HierarchicalTrainingSAEConfig; "
                f"train other architectures with SAELens' LanguageModelSAETrainingRunner"
            )
        if cfg.prefetch_llm_batches and (cfg.n_checkpoints > 0 or cfg.resume_from_checkpoint):
            raise ValueError(
                f"prefetch_llm_batches={cfg.prefetch_llm_batches!r}: batches fetched ahead belong to no step yet, so a "
                f"checkpoint could not be resumed exactly; set it to False, or n_checkpoints=0"
            )
        self.forest_logging = forest_logging or ForestLogging()
        self.forest_logging.check(cfg)
        if cfg.resume_from_checkpoint is not None:
            _check_architecture(Path(cfg.resume_from_checkpoint))
        super().__init__(cfg, override_dataset, override_model, override_sae)
        if not isinstance(self.sae, HierarchicalTrainingSAE):
            raise ValueError(
                f"override_sae={type(self.sae).__name__} is not a HierarchicalTrainingSAE; "
                f"train other architectures with SAELens' LanguageModelSAETrainingRunner"
            )
        self.activations_store: ActivationsStore = ResumableActivationsStore.from_config(
            self.model, cfg, override_dataset=self.activations_store.dataset
        )
        self.evaluator.activations_store = self.activations_store

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> TrainingSAE[Any]:
        """Train with :class:`HierarchicalSAETrainer` in place of the given trainer."""
        ours = HierarchicalSAETrainer.taking_over(trainer)
        if self.forest_logging.trees:
            ours.after_update = self._forest_log.after_update

        def stop(signal_number: int, _frame: Any) -> None:
            signal.signal(signal_number, signal.SIG_DFL)  # a second signal ends the process at once
            ours.stop_requested = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return ours.fit()
        except InterruptedException:
            self._save_interrupted(ours)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @override
    def save_final_sae(
        self, sae: TrainingSAE[Any], output_path: str, log_feature_sparsity: torch.Tensor | None = None
    ) -> None:
        """SAELens', and the explorer page if ``forest_logging`` asks for it."""
        super().save_final_sae(sae, output_path, log_feature_sparsity)
        if self.forest_logging.explorer:
            self._forest_log.explorer(output_path)

    @cached_property
    def _forest_log(self) -> ForestLog:
        return ForestLog(self.forest_logging, self.model, self.cfg, self.activations_store.dataset)

    def _save_interrupted(self, trainer: HierarchicalSAETrainer) -> None:
        if self.cfg.checkpoint_path is None:
            logger.warning("interrupted; nothing is saved, because checkpoint_path is None")
        elif isinstance(trainer.data_provider, PrefetchingIterator):
            logger.warning("interrupted; nothing is saved, because prefetch_llm_batches is on")
        else:
            name = str(trainer.n_training_samples)
            trainer.save_checkpoint(checkpoint_name=name)
            checkpoint = Path(self.cfg.checkpoint_path) / name
            logger.warning(f"interrupted; resume with resume_from_checkpoint={str(checkpoint)!r}")


def _check_architecture(checkpoint: Path) -> None:
    """Refuse a checkpoint that is none, or one of another architecture, before anything is loaded."""
    cfg_path = checkpoint / SAE_CFG_FILENAME
    if not cfg_path.exists():
        raise FileNotFoundError(
            f"resume_from_checkpoint={str(checkpoint)!r} holds no {SAE_CFG_FILENAME}; "
            f"give the folder of one checkpoint, which is named after its number of samples"
        )
    check_architecture(cfg_path)
