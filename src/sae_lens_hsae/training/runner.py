"""SAELens' runner with our trainer and store in the places of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens import logger
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from transformer_lens import HookedRootModule
from transformers import set_seed
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.forest.levels import NO_PARENT
from sae_lens_hsae.sae.bad_batches import BadBatchError
from sae_lens_hsae.sae.model_files import check_architecture
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.storage.json_files import printable, read_json_object
from sae_lens_hsae.storage.whole_files import files_written_whole
from sae_lens_hsae.text.load_model import model_of_run
from sae_lens_hsae.text.rows import rows_on_disk
from sae_lens_hsae.training.checkpoints import AUTO, MANIFEST, check_checkpoint, resume_newest, way_on
from sae_lens_hsae.training.distributed.data_parallel import DataParallelTrainer
from sae_lens_hsae.training.distributed.ranks import join, own_device
from sae_lens_hsae.training.forest_log import ForestLog, ForestLogging
from sae_lens_hsae.training.run_checks import check_run, folded_scale, late_forest
from sae_lens_hsae.training.store import ResumableActivationsStore
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer
from sae_lens_hsae.training.uploads import uploads_follow

STOPPING = (signal.SIGINT, signal.SIGTERM)
UNSAVED = "model"
"""Folder beside the checkpoints for a model that ``output_path`` does not take."""
OF_THE_PLACE = ("device", "metadata")
"""Fields of an SAE that say where it runs and what it reads, not how it is trained."""


class HierarchicalSAETrainingRunner(LanguageModelSAETrainingRunner):
    """Trains a ``HierarchicalTrainingSAE`` on a language model.

    The same batches and losses as SAELens' ``LanguageModelSAETrainingRunner`` from the same random state. That one
    leaves ``cfg.seed`` to the caller. Here making the runner sets Python's, NumPy's and torch's random state by it, and
    so it decides the weights, if none are given, and the order of the activations.

    Beyond that, a run stopped by SIGINT or SIGTERM writes a checkpoint after its current step, and a resumed run sees
    the batches and takes the steps that the uninterrupted one would have. With ``resume_from_checkpoint="auto"``
    it goes on from the newest whole checkpoint of the same configuration in ``checkpoint_path``, in whose folder
    it then writes its own, or begins if there is none.

    Where PyTorch's ``torchrun`` has started several processes, each makes its runner of the same config and they train
    one SAE, data-parallel: ``train_batch_size_tokens`` and ``training_tokens`` are those of all together.

    Args:
        cfg: SAELens' config with a `HierarchicalTrainingSAEConfig` in ``sae``.
        forest_logging: what of the forest goes to W&B, beyond the curves; None is nothing.
        max_bad_batches: batches of NaN or infinite numbers to skip before one ends the run.
        keep_checkpoints: how many checkpoints of the run stay, the newest; None keeps all.
        rank_timeout: seconds for which one process waits for the others, where ``torchrun`` has started several.

    Attributes:
        after_training: called on rank 0 with the trained SAE, once it is saved if it is to be, before W&B's run ends.

    Raises:
        ValueError: naming the field of ``cfg`` or the argument that does not do, or the checkpoint.
        OSError: if ``output_path`` or ``checkpoint_path`` cannot be written to; from `run`, saying where the model is
            if ``output_path`` does not take it in the end.
        Interrupted: from `run`, once the checkpoint is written, or could not be.
    """

    after_training: Callable[[HierarchicalTrainingSAE], object] | None = None

    @override
    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[HierarchicalTrainingSAEConfig],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        *,
        forest_logging: ForestLogging | None = None,
        max_bad_batches: int = 0,
        keep_checkpoints: int | None = None,
        rank_timeout: float = 600.0,
    ) -> None:
        if not isinstance(cfg.sae, HierarchicalTrainingSAEConfig):
            raise ValueError(
                f"sae={type(cfg.sae).__name__} is not a HierarchicalTrainingSAEConfig; "
                f"train other architectures with SAELens' LanguageModelSAETrainingRunner"
            )
        check_run(cfg, max_bad_batches, keep_checkpoints)
        self.forest_logging = forest_logging or ForestLogging()
        self.forest_logging.check(cfg)
        self.max_bad_batches, self.keep_checkpoints = max_bad_batches, keep_checkpoints
        self._received: list[int] = []  # signals while the run was not to be ended at once
        self._handlers: dict[int, Any] = {}  # what they did before
        _keep_to_own_config(cfg, override_sae)
        self.ranks = join(cfg.device, rank_timeout)
        if self.ranks is not None:
            _take_devices(cfg)
        if self.ranks is None or self.ranks.is_first:
            if cfg.resume_from_checkpoint == AUTO:
                resume_newest(cfg)
            elif cfg.resume_from_checkpoint is not None:
                check_checkpoint(Path(cfg.resume_from_checkpoint), cfg.to_dict())
        if self.ranks is not None:
            # SAELens draws a folder for each process's checkpoints.
            chosen = (cfg.checkpoint_path, cfg.resume_from_checkpoint)
            cfg.checkpoint_path, cfg.resume_from_checkpoint = self.ranks.told_by_first(chosen)
        if override_dataset is None:
            override_dataset = rows_on_disk(cfg)
        with model_of_run(cfg, override_model) as model:
            set_seed(cfg.seed)  # SAELens seeds neither the weights nor the order of the activations
            super().__init__(cfg, override_dataset, model, override_sae)
        if not isinstance(self.sae, HierarchicalTrainingSAE):
            raise ValueError(
                f"override_sae={type(self.sae).__name__} is not a HierarchicalTrainingSAE; "
                f"train other architectures with SAELens' LanguageModelSAETrainingRunner"
            )
        steps_before = self.sae.forest_updater.steps_taken()
        warnings = folded_scale(self.sae.cfg) if steps_before else []
        if not (self.sae.parents != NO_PARENT).any():
            warnings += late_forest(cfg, steps_before)
        for warning in warnings if self.is_first else []:
            logger.warning(warning)
        self._whole_dataset = self.activations_store.dataset
        self.activations_store: ActivationsStore = self._own_store()
        self.evaluator.activations_store = self.activations_store

    def _own_store(self) -> ActivationsStore:
        own = copy(self.cfg)
        own.train_batch_size_tokens //= 1 if self.ranks is None else self.ranks.n_ranks
        store = ResumableActivationsStore.from_config(self.model, own, override_dataset=self._whole_dataset)
        assert isinstance(store, ResumableActivationsStore)
        store.content = str(getattr(self._whole_dataset, "_fingerprint", ""))  # of streamed rows there is none
        if self.ranks is None:
            return store
        store.divide(self.ranks.rank, self.ranks.n_ranks)
        if not self.ranks.is_first:
            # All have begun with one seed and thus equal weights; they need not shuffle their text alike.
            torch.manual_seed(torch.initial_seed() + self.ranks.rank)
            os.environ["WANDB_MODE"] = "disabled"
        return store

    _trainer: HierarchicalSAETrainer | None = None
    _checkpoint: str | None = None

    @override
    def run(self) -> TrainingSAE[Any]:
        self._checkpoint = self.cfg.resume_from_checkpoint
        if self._checkpoint is not None:
            # SAELens' trainer would refuse the state of another schedule, and hold Adam's moments beside ours.
            self.cfg.resume_from_checkpoint = None
            self.sae.load_weights_from_checkpoint(self._checkpoint)
            self.activations_store.load_from_checkpoint(self._checkpoint)
        before = wandb.run
        try:
            sae = super().run()
        except BaseException:
            self._put_back_handlers()
            if wandb.run is not None and wandb.run is not before:
                wandb.finish(exit_code=1)  # else the next run of this process would log into this one
            raise
        finally:
            self.cfg.resume_from_checkpoint = self._checkpoint
        if self.ranks is not None:
            self.ranks.leave()
        return sae

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> TrainingSAE[Any]:
        """Train with `HierarchicalSAETrainer` in place of the given trainer."""
        self.cfg.resume_from_checkpoint = self._checkpoint
        self._trainer = ours = self._own_trainer(trainer)
        if self.forest_logging.trees and self.is_first:
            ours.after_update = self._forest_log.after_update
        ours.max_bad_batches, ours.keep_checkpoints = self.max_bad_batches, self.keep_checkpoints
        self._received = received = []

        def stop(signal_number: int, _frame: Any) -> None:
            for number in STOPPING:
                signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
            received.append(signal_number)
            ours.stop_requested = True
            if not ours.training_began:
                raise Interrupted(signal_number)

        self._handlers = {number: signal.signal(number, stop) for number in STOPPING}
        try:
            sae = ours.fit()
        except InterruptedException as stopped:
            if ours.training_began:
                self._save_unfinished(ours, "interrupted")
            # Of several ranks, one may have been stopped by what another was sent.
            raise Interrupted(received[0] if received else signal.SIGTERM) from stopped
        except Exception as error:
            # A bad batch ends all ranks together; anything else ends one alone, for which the others would wait.
            is_over = ours.n_training_samples >= ours.cfg.total_training_samples and not self._can_resume(ours)
            if is_over and self.is_first and self.cfg.output_path is not None:
                self._save_in_spite_of(error, ours)
            elif ours.can_go_on and (self.ranks is None or isinstance(error, BadBatchError)):
                ours.n_training_steps = ours.lr_scheduler.last_epoch  # SAELens counts a step after its evaluation
                self._save_unfinished(ours, f"ended by {type(error).__name__}, the batch in flight may be lost")
            raise
        if self.cfg.output_path is None:
            self._put_back_handlers()
            if self.after_training is not None and self.is_first:
                self.after_training(sae)
        return sae

    def _put_back_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _end_if_stopped(self) -> None:
        """End the run if a signal came when there was only the model to save; from here on one ends it at once."""
        self._put_back_handlers()
        if self._received:
            logger.warning(f"interrupted; the trained model is in {self.cfg.output_path!r}")
            raise Interrupted(self._received[0])

    @override
    def save_final_sae(
        self, sae: TrainingSAE[Any], output_path: str, log_feature_sparsity: torch.Tensor | None = None
    ) -> None:
        """SAELens', ``after_training``, and the explorer page if ``forest_logging`` asks for it; by rank 0."""
        assert isinstance(sae, HierarchicalTrainingSAE)
        if self._trainer is not None:
            log_feature_sparsity = self._trainer.log_feature_sparsity  # the given one's trainer has not trained
        if not self.is_first:
            sae.project_parameters()  # as saving does, so that all ranks return the SAE that is saved
            self._end_if_stopped()
            return
        try:
            self._save_model(sae, Path(output_path), log_feature_sparsity)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"the model could not be written to {output_path!r} ({error}); what stood there is as it was. "
                f"{self._save_elsewhere(sae, log_feature_sparsity)}"
            ) from error
        self._end_if_stopped()
        if self.after_training is not None:
            self.after_training(sae)
        if self.forest_logging.explorer:
            self._forest_log.explorer(output_path)

    def _save_model(
        self, sae: HierarchicalTrainingSAE, folder: Path, log_feature_sparsity: torch.Tensor | None
    ) -> None:
        # The trainer has updated the forest, or failed to.
        sae.keeps_forest = self._trainer is not None and self._trainer.finished
        try:
            with uploads_follow(self.cfg.logger, folder), files_written_whole(folder, SAE_CFG_FILENAME) as aside:
                super().save_final_sae(sae, str(aside), log_feature_sparsity)
        finally:
            sae.keeps_forest = False

    def _can_resume(self, trainer: HierarchicalSAETrainer) -> bool:
        """Whether a checkpoint of this moment could be written, and gone on from."""
        fetched_ahead = isinstance(trainer.data_provider, PrefetchingIterator)
        return trainer.can_go_on and self.cfg.checkpoint_path is not None and not fetched_ahead

    def _save_in_spite_of(self, error: Exception, trainer: HierarchicalSAETrainer) -> None:
        """Save a model that is trained, where what comes after the last step, such as a log, failed."""
        end, place = f"{type(error).__name__} after the last step", repr(self.cfg.output_path)
        try:
            trainer.fold_scale()
            self._save_model(trainer.sae, Path(str(self.cfg.output_path)), trainer.log_feature_sparsity)
        except Exception as fault:  # the error that ends the run is the one that is raised
            logger.warning(f"{end}; the trained model could not be written to {place}: {printable(fault)}")
            return
        logger.warning(f"{end}; the trained model is in {place}")

    def _save_elsewhere(self, sae: HierarchicalTrainingSAE, log_feature_sparsity: torch.Tensor | None) -> str:
        """Save what ``output_path`` does not take beside the checkpoints; what can be done now."""
        if self.cfg.checkpoint_path is None:
            return "Make room, or choose another output_path, and train again"
        folder = Path(self.cfg.checkpoint_path) / UNSAVED
        try:
            self._save_model(sae, folder, log_feature_sparsity)
        except (OSError, SafetensorError):
            return f"Make room, or choose another output_path, and {way_on(folder.parent)}"
        return f"It is in {str(folder)!r} instead"

    @property
    def is_first(self) -> bool:
        """Whether this process logs and saves: it is alone, or rank 0."""
        return self.ranks is None or self.ranks.is_first

    def _own_trainer(self, trainer: SAETrainer[Any, Any]) -> HierarchicalSAETrainer:
        """A trainer of ours for what SAELens' has been given, and at the checkpoint where that stands."""
        kind = HierarchicalSAETrainer if self.ranks is None else DataParallelTrainer
        ours = kind(trainer.cfg, trainer.sae, trainer.data_provider, trainer.evaluator, trainer.save_checkpoint_fn)
        if isinstance(ours, DataParallelTrainer):
            assert self.ranks is not None
            ours.ranks, ours.save_text = self.ranks, self.activations_store.save_to_checkpoint
        if self._checkpoint is not None:
            logger.info(f"resuming from {self._checkpoint}")
            if wandb.run is not None and self.cfg.logger.log_to_wandb:
                wandb.config.update({"resume_from_checkpoint": self._checkpoint}, allow_val_change=True)
            ours.load_trainer_state(self._checkpoint)
        return ours

    @cached_property
    def _forest_log(self) -> ForestLog:
        with self.nothing_fetched_ahead():
            return ForestLog(self.forest_logging, self.model, self.cfg, self._whole_dataset)

    def nothing_fetched_ahead(self) -> AbstractContextManager[None]:
        """While this holds, the thread that fetches batches ahead leaves the model and the store to others."""
        provider = None if self._trainer is None else self._trainer.data_provider
        return provider.paused() if isinstance(provider, PrefetchingIterator) else nullcontext()

    def _save_unfinished(self, trainer: HierarchicalSAETrainer, end: str) -> None:
        if self.cfg.checkpoint_path is None:
            logger.warning(f"{end}; nothing is saved, because checkpoint_path is None")
        elif isinstance(trainer.data_provider, PrefetchingIterator):
            logger.warning(f"{end}; nothing is saved, because prefetch_llm_batches is on")
        else:
            name = str(trainer.n_training_samples)
            checkpoint = Path(self.cfg.checkpoint_path) / name
            try:
                if not (checkpoint / MANIFEST).exists():  # else a step has failed again, and lost one more batch
                    trainer.save_checkpoint(checkpoint_name=name)
            except Exception as fault:  # whatever it is, the run ends as it would have
                logger.warning(f"{end}; {str(checkpoint)!r} could not be written: {printable(fault)}")
                return
            logger.warning(f"{end}; resume with resume_from_checkpoint={str(checkpoint)!r}, or {AUTO!r}")


class Interrupted(InterruptedException, SystemExit):
    """A run was stopped by a signal; uncaught, it ends the process with the conventional code, 128 + the signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.code = 128 + signal_number


def _keep_to_own_config(cfg: LanguageModelSAERunnerConfig[Any], override_sae: TrainingSAE[Any] | None) -> None:
    """Have the configuration say how the SAE is trained, where one that was made before brings its own."""
    where = cfg.from_pretrained_path
    if override_sae is not None:
        which, own = "override_sae", override_sae.cfg
    elif where is not None and (Path(where) / SAE_CFG_FILENAME).is_file():
        check_architecture(Path(where) / SAE_CFG_FILENAME)
        which = f"from_pretrained_path={where!r}"
        own = HierarchicalTrainingSAEConfig.from_dict(read_json_object(Path(where) / SAE_CFG_FILENAME))
    else:
        return
    if not isinstance(own, HierarchicalTrainingSAEConfig):
        return  # refused below
    if own is cfg.sae:
        cfg.sae = deepcopy(own)  # training changes the SAE's own
    given = cfg.sae.to_dict()
    other = [name for name, value in own.to_dict().items() if name not in OF_THE_PLACE and value != given.get(name)]
    if other:
        logger.warning(
            f"{which} has another {printable(', '.join(other))} than sae, and is trained with its own values; to "
            "change them, change its configuration"
        )
        # A copy, which folding the scale into the SAE at the end does not change.
        cfg.sae = replace(own, **{name: getattr(cfg.sae, name) for name in OF_THE_PLACE})


def _take_devices(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Have everything that is to be on a GPU be on this process's own."""
    cfg.device = cfg.sae.device = own_device(cfg.device)
    cfg.llm_device = own_device(str(cfg.llm_device))
    cfg.act_store_device = own_device(str(cfg.act_store_device))
