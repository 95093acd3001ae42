"""SAELens' trainer with what needs the optimizer or the checkpoint's folder; the mathematics is the training SAE's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from sae_lens import logger
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, TRAINER_STATE_FILENAME
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.bad_batches import BadBatchError, CheckedActivationScaler, check_parameters
from sae_lens_hsae.sae.gpu_step.late_checks import LateChecks
from sae_lens_hsae.sae.model_files import scale_beside
from sae_lens_hsae.sae.step_output import LazyStepOutput
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.storage.whole_files import folder_written_whole
from sae_lens_hsae.training.checkpoints import Manifest, delete_older, way_on, write_manifest
from sae_lens_hsae.training.trainer_state import read_trainer_state, schedule_at
from sae_lens_hsae.training.uploads import uploads_follow
from sae_lens_hsae.training.watch import TrainingWatch, is_look_due, variance_explained

FUSED_ADAM_DEVICES = ("cpu", "cuda", "mps", "xpu")
COUNTED = ("n_training_samples", "act_freq_scores", "n_forward_passes_since_fired", "n_frac_active_samples")
"""What SAELens' trainer counts within a step, in new tensors each time: those of the step before may be put back."""


class HierarchicalSAETrainer(SAETrainer[HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig]):
    """Trains a `HierarchicalTrainingSAE` as ``SAETrainer`` does, with these differences.

    - Adam runs fused, one kernel for all parameters, on the devices that have one.
    - Decoder rows are of unit norm after each step, not only before the next: checkpoints and logs see them so.
    - A step that fails before the parameters move has counted nothing.
    - Steps that only observe do not count in firing frequencies and their L0.
    - The last hierarchy update comes before the final checkpoint, not only when the inference model is saved.
    - Training can be asked to stop between two steps, by ``stop_requested``.
    - ``after_update`` is called whenever the forest has been updated.
    - A checkpoint appears whole or not at all, with a manifest of its files, and never with NaN or infinite parameters.
      A resumed run does not write again those that it has passed.
    - What a file holds is checked before anything is changed by it.
    - Training that goes wrong without failing is warned of, see ``training_watch``.

    Attributes:
        stop_requested: have training end before its next step.
        after_update: called with the trainer.
        max_bad_batches: batches to skip before one ends training; counted from the start or the resume.
        keep_checkpoints: how many checkpoints of the run stay, the newest; None keeps all.
        n_bad_batches: batches skipped so far.
        training_began: whether training is past its preparations.
    """

    stop_requested: bool = False
    after_update: Callable[[HierarchicalSAETrainer], None] | None = None
    max_bad_batches: int = 0
    keep_checkpoints: int | None = None
    n_bad_batches: int = 0
    training_began: bool = False
    finished: bool = False
    _watch: TrainingWatch | None = None

    @override
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation_scaler = CheckedActivationScaler()
        self._use_fused_adam()
        # On a CPU nothing is gained: it waits for nobody.
        self.sae.checks.late = LateChecks() if self.sae.device.type == "cuda" else None

    def _use_fused_adam(self) -> None:
        # Switched on here because the optimizer is SAELens' to construct, and a loaded state brings its own setting.
        if self.sae.device.type not in FUSED_ADAM_DEVICES:
            return
        for group in self.optimizer.param_groups:
            group.update(fused=True, foreach=False)
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        """SAELens', but the schedule is that of this run's configuration, as if it had held from the start.

        A FileNotFoundError if a file is missing, a ValueError if one is damaged.
        """
        folder = Path(checkpoint_path)
        read_trainer_state(folder / TRAINER_STATE_FILENAME)
        if not (folder / ACTIVATION_SCALER_CFG_FILENAME).is_file():
            raise FileNotFoundError(f"{folder / ACTIVATION_SCALER_CFG_FILENAME} is missing")
        scale_beside(folder)
        # The saved schedule may be of another kind, whose state this one could not take.
        self.lr_scheduler = cast("Any", SimpleNamespace(load_state_dict=lambda _: None))
        super().load_trainer_state(checkpoint_path)
        self.lr_scheduler = schedule_at(self.n_training_steps, self.optimizer, self.cfg)
        self._use_fused_adam()
        self.checkpoint_thresholds = [n for n in self.checkpoint_thresholds if n >= self.n_training_samples]

    @override
    def save_checkpoint(
        self, checkpoint_name: str, base_path: Path | str | None = None, wandb_aliases: list[str] | None = None
    ) -> None:
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        if base is None:
            with uploads_follow(self.cfg.logger, None):
                super().save_checkpoint(checkpoint_name, None, wandb_aliases)
            return
        self._check_parameters()
        final = Path(base) / checkpoint_name
        try:
            with uploads_follow(self.cfg.logger, final), folder_written_whole(final) as new:
                super().save_checkpoint(checkpoint_name, new.parent, wandb_aliases)
                self._complete_checkpoint(new)
                write_manifest(new, Manifest(self.n_training_samples, self.finished))
        except torch.OutOfMemoryError:
            raise
        # A full disk is an OSError of Python, a SafetensorError of safetensors and a RuntimeError of torch.
        except (OSError, SafetensorError, RuntimeError) as error:
            raise OSError(
                f"the checkpoint {str(final)!r} could not be written ({error}); those written before are as they were. "
                f"Make room, or choose another checkpoint_path, and {way_on(final.parent)}"
            ) from error
        if self.keep_checkpoints is not None:
            delete_older(final, self.keep_checkpoints)

    def _complete_checkpoint(self, folder: Path) -> None:
        """Write what else belongs to a checkpoint, before its files are listed; here nothing."""

    def _check_parameters(self) -> None:
        check_parameters(self.sae.named_parameters(), self.sae.levels, f"after training step {self.n_training_steps}")

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        n_steps = self.lr_scheduler.last_epoch
        while True:
            put_back = self._way_back()
            try:
                return super().step(batch)
            except Exception as error:
                if self.lr_scheduler.last_epoch == n_steps:  # else the step is whole, and what came after it failed
                    put_back()
                if not isinstance(error, BadBatchError):
                    raise
                self._skip(error)
                if not error.of_last_step:
                    batch = next(self.data_provider)

    def _way_back(self) -> Callable[[], None]:
        """What undoes a step that fails before its parameters move; it copies a few numbers per feature."""
        sae, counts = self.sae, {name: getattr(self, name) for name in COUNTED}
        buffers, recent = [buffer.clone() for buffer in sae.buffers()], sae.forest_updater.recent
        batches = [] if recent is None else [*recent.batches]

        def put_back() -> None:
            vars(self).update(counts)
            for buffer, value in zip(sae.buffers(), buffers, strict=True):
                buffer.copy_(value)
            if recent is not None:
                recent.batches = batches
            sae.forest_updater.forget()
            for state in self.optimizer.state.values():
                if "exp_avg_sq" not in state:  # there was memory for a part of the moments, which could not be resumed
                    state.clear()

        return put_back

    @property
    def can_go_on(self) -> bool:
        """Whether there are steps to go on from, and training is not over."""
        return self.training_began and self.n_training_samples > 0 and not self.finished

    def _skip(self, error: BadBatchError) -> None:
        """Count a batch as skipped, or raise the error if no more may be."""
        if self.n_bad_batches >= self.max_bad_batches:
            if self.max_bad_batches == 0:
                raise error
            raise BadBatchError(f"{error} (max_bad_batches={self.max_bad_batches} batches were skipped)") from error
        self.n_bad_batches += 1
        logger.warning(f"skipped bad batch {self.n_bad_batches} of at most {self.max_bad_batches}: {error}")

    def _estimate_scale_again(self) -> None:
        """If bad batches may be skipped, one in the estimate of the activation scale must not spoil all that follow."""
        while (factor := self.activation_scaler.scaling_factor) is not None and not 0 < factor < math.inf:
            self._skip(BadBatchError(f"the activations' mean norm makes a scale of {factor}: some are NaN or infinite"))
            self.activation_scaler.estimate_scaling_factor(
                self.sae.cfg.d_in, self.data_provider, self.cfg.n_batches_for_norm_estimate
            )

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        # SAELens calls this between steps, before it takes the next batch: whatever is saved now is consistent.
        if self._must_stop():
            raise InterruptedException
        if not self.training_began and self.max_bad_batches > 0:
            self._estimate_scale_again()
        self.training_began = True
        return super().maybe_reset_sparsity()

    def _must_stop(self) -> bool:
        return self.stop_requested

    @override
    def _checkpoint_if_needed(self) -> None:
        # SAELens counts the step after this; a run resumed from its checkpoint would give two steps the same number.
        self.n_training_steps += 1
        try:
            super()._checkpoint_if_needed()
        finally:
            self.n_training_steps -= 1

    @override
    def _train_step(self, sae: HierarchicalTrainingSAE, sae_in: torch.Tensor) -> TrainStepOutput:
        n_updates = sae.forest_updater.n_updates
        output = self._stepped(sae, sae_in)
        sae.project_parameters()
        self._after_step(forest_is_new=sae.forest_updater.n_updates != n_updates)
        self._tell_update(n_updates)
        if is_look_due(sae.forest_updater.steps_taken()):
            self._look(output)
        return output

    def _stepped(self, sae: HierarchicalTrainingSAE, sae_in: torch.Tensor) -> TrainStepOutput:
        """SAELens' step, in which the activations are not written out in full for their count."""
        sae.train()
        observes = sae.standardization.is_observing(sae.forest_updater.steps_taken())
        with self.autocast_if_enabled:
            output = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=sae_in,
                    dead_neuron_mask=self.dead_neurons,
                    coefficients=self.get_coefficients(),
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_logging_step(),
                )
            )
        self._count_firing(output, observes)
        if sae.checks.late is not None:
            # Fused Adam does nothing where this is 1, as under a gradient scaler.
            self.optimizer.found_inf = sae.checks.late.bad  # pyright: ignore[reportAttributeAccessIssue]
        output.loss.backward()
        if observes:  # of several processes all have gradients, of 0, see `observing_output`
            for parameter in (each for each in sae.parameters() if each is not sae.b_dec):
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        return output

    @torch.no_grad()
    def _count_firing(self, output: TrainStepOutput, observes: bool) -> None:
        if isinstance(output, LazyStepOutput):
            times = output.times_fired()
        else:
            times = output.feature_acts.count_nonzero(0).float()
        self.n_forward_passes_since_fired = (self.n_forward_passes_since_fired + 1).masked_fill_(times > 0, 0)
        self.act_freq_scores = self.act_freq_scores + times
        if not observes:  # else nothing can fire, and L0 and frequencies would come out too low
            self.n_frac_active_samples += self.cfg.train_batch_size_samples

    @property
    @override
    def feature_sparsity(self) -> torch.Tensor:
        return super().feature_sparsity if self.n_frac_active_samples else torch.zeros_like(self.act_freq_scores)

    def _after_step(self, *, forest_is_new: bool) -> None:
        """What follows a step before anyone looks at it; here nothing."""

    @torch.no_grad()
    def _look(self, output: TrainStepOutput) -> None:
        sae = self.sae
        if self._watch is None:
            self._watch = TrainingWatch(sae.levels, sae.cfg.target_l0_per_level)
        reconstructions = [sae.decode_level(output.feature_acts, level) for level in range(len(sae.levels))]
        self._watch.look(
            sae.forest_updater.steps_taken(),
            sae.sparsity.state(),
            self.dead_neurons,
            sae.parents,
            [variance_explained(output.sae_in, reconstruction) for reconstruction in reconstructions],
        )

    @override
    def build_train_step_log_dict(self, output: TrainStepOutput, n_training_samples: int) -> dict[str, Any]:
        log = super().build_train_step_log_dict(output, n_training_samples)
        return {**log, "metrics/bad_batches": self.n_bad_batches} if self.max_bad_batches else log

    def fold_scale(self) -> None:
        """Fold the activation scale into the SAE, as training does at its end; nothing where that is done."""
        if self.activation_scaler.scaling_factor is not None:
            self.sae.fold_activation_norm_scaling_factor(self.activation_scaler.scaling_factor)
            self.activation_scaler.scaling_factor = None

    @override
    def set_final_sae_metadata(self) -> None:
        self._check_parameters()
        self.finished = True
        n_updates = self.sae.forest_updater.n_updates
        try:
            self.sae.finish_training()
        except Exception as error:
            logger.warning(f"the last hierarchy update failed, the forest stays as it is: {printable(error)}")
            raise
        self._tell_update(n_updates)
        super().set_final_sae_metadata()

    def _tell_update(self, n_updates_before: int) -> None:
        if self.after_update is not None and self.sae.forest_updater.n_updates != n_updates_before:
            self.after_update(self)
