"""SAELens' runner with our trainer and store in the places of its own."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from sae_lens import logger
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import SAETrainer
from transformer_lens import HookedRootModule
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.resumable_store import ResumableActivationsStore
from sae_lens_hsae.trainer import HierarchicalSAETrainer


class HierarchicalSAETrainingRunner(LanguageModelSAETrainingRunner):
    """Trains a ``HierarchicalTrainingSAE`` on a language model.

    The same batches and losses as SAELens' ``LanguageModelSAETrainingRunner`` for the same seed. Beyond it,
    a run stopped by SIGINT or SIGTERM writes a checkpoint after its current step, and a resumed run sees
    the batches and takes the steps that the uninterrupted one would have.

    Args:
        cfg: SAELens' config with a :class:`HierarchicalTrainingSAEConfig` in ``sae``.

    Raises:
        ValueError: if ``cfg.sae`` is of another architecture, or prefetching is on while checkpoints are to be written.
    """

    @override
    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[HierarchicalTrainingSAEConfig],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
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
        super().__init__(cfg, override_dataset, override_model, override_sae)
        self.activations_store: ActivationsStore = ResumableActivationsStore.from_config(
            self.model, cfg, override_dataset=self.activations_store.dataset
        )
        self.evaluator.activations_store = self.activations_store

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> TrainingSAE[Any]:
        """Train with :class:`HierarchicalSAETrainer` in place of the given trainer."""
        ours = HierarchicalSAETrainer(
            cfg=trainer.cfg,
            sae=trainer.sae,
            data_provider=trainer.data_provider,
            evaluator=trainer.evaluator,
            save_checkpoint_fn=trainer.save_checkpoint_fn,
        )
        if self.cfg.resume_from_checkpoint is not None:
            ours.load_trainer_state(self.cfg.resume_from_checkpoint)

        def stop(signal_number: int, _frame: Any) -> None:
            signal.signal(signal_number, signal.SIG_DFL)  # a second signal ends the process at once
            ours.stop_requested = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return ours.fit()
        except InterruptedException:
            if self.cfg.checkpoint_path is not None and not isinstance(ours.data_provider, PrefetchingIterator):
                ours.save_checkpoint(checkpoint_name=str(ours.n_training_samples))
                checkpoint = Path(self.cfg.checkpoint_path) / str(ours.n_training_samples)
                logger.warning(f"interrupted; resume with resume_from_checkpoint={str(checkpoint)!r}")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            # The host reads its trainer's statistics once training is over.
            trainer.__dict__.update(ours.__dict__)
