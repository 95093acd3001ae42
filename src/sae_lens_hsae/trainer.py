"""SAELens' trainer with what needs the optimizer or the checkpoint's folder; the mathematics is the training SAE's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.training_sae import HierarchicalTrainingSAE

FUSED_ADAM_DEVICES = ("cpu", "cuda", "mps", "xpu")


class HierarchicalSAETrainer(SAETrainer[HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig]):
    """Trains a :class:`HierarchicalTrainingSAE` as ``SAETrainer`` does, with these differences.

    - Adam runs fused, one kernel for all parameters, on the devices that have one.
    - Decoder rows are of unit norm after each step, not only before the next: checkpoints and logs see them so.
    - The last hierarchy update comes before the final checkpoint, not only when the inference model is saved.
    - Training can be asked to stop between two steps, by ``stop_requested``.
    - ``after_update`` is called whenever the forest has been updated.
    - A checkpoint appears whole or not at all, and a resumed run does not write again those that it has passed.
    """

    stop_requested: bool = False
    after_update: Callable[[HierarchicalSAETrainer], None] | None = None

    @override
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_fused_adam()

    @classmethod
    def taking_over(cls, trainer: SAETrainer[Any, Any]) -> HierarchicalSAETrainer:
        """Go on with the state of another trainer, which sees what becomes of it: they share their attributes."""
        ours = cls.__new__(cls)
        ours.__dict__ = trainer.__dict__
        ours._use_fused_adam()
        ours._drop_passed_checkpoints()
        return ours

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

    def _drop_passed_checkpoints(self) -> None:
        self.checkpoint_thresholds = [n for n in self.checkpoint_thresholds if n >= self.n_training_samples]

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        super().load_trainer_state(checkpoint_path)
        self._use_fused_adam()
        self._drop_passed_checkpoints()

    @override
    def save_checkpoint(
        self, checkpoint_name: str, base_path: Path | str | None = None, wandb_aliases: list[str] | None = None
    ) -> None:
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        if base is None:
            super().save_checkpoint(checkpoint_name, None, wandb_aliases)
            return
        final = Path(base) / checkpoint_name
        final.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=base, prefix=".unfinished-") as aside:
            super().save_checkpoint(checkpoint_name, aside, wandb_aliases)
            if final.exists():
                shutil.rmtree(final)
            (Path(aside) / checkpoint_name).rename(final)

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        # SAELens calls this between steps, before it takes the next batch: whatever is saved now is consistent.
        if self.stop_requested:
            raise InterruptedException
        return super().maybe_reset_sparsity()

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
        version = sae.parents._version
        output = super()._train_step(sae, sae_in)
        sae.project_parameters()
        self._tell_update(version)
        return output

    @override
    def set_final_sae_metadata(self) -> None:
        version = self.sae.parents._version
        self.sae.finish_training()
        self._tell_update(version)
        super().set_final_sae_metadata()

    def _tell_update(self, version_before: int) -> None:
        # The table's version counts the writes to it, and is known without waiting for a device.
        if self.after_update is not None and self.sae.parents._version != version_before:
            self.after_update(self)
