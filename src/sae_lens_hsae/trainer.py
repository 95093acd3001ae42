"""SAELens' trainer with what needs the optimizer; the mathematics is the training SAE's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.training_sae import HierarchicalTrainingSAE


class HierarchicalSAETrainer(SAETrainer[HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig]):
    """Trains a :class:`HierarchicalTrainingSAE` as ``SAETrainer`` does, with four differences.

    - Adam runs fused, one kernel for all parameters.
    - Decoder rows are of unit norm after each step, not only before the next: checkpoints and logs see them so.
    - The last hierarchy update comes before the final checkpoint, not only when the inference model is saved.
    - It can be asked to stop between two steps, by ``stop_requested``.
    """

    stop_requested: bool = False

    @override
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_fused_adam()

    def _use_fused_adam(self) -> None:
        # Switched on here because the optimizer is SAELens' to construct, and a loaded state brings its own setting.
        for group in self.optimizer.param_groups:
            group.update(fused=True, foreach=False)
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        super().load_trainer_state(checkpoint_path)
        self._use_fused_adam()

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
        output = super()._train_step(sae, sae_in)
        sae.project_parameters()
        return output

    @override
    def set_final_sae_metadata(self) -> None:
        self.sae.finish_training()
        super().set_final_sae_metadata()
