"""Training on several processes: each has the whole model and its own text, and all take the same step.

With equal parts of the batch, gradients and L0 of the whole batch are the means over ranks of those of the parts, and
firing counts their sums. (Where outlying tokens count less in L0, each part's is over its own weights: exact if these
are spread evenly. In the auxiliary loss silent features are active on tokens of each part.) So parameters, λ, dead
features and forest stay the same on all ranks without being sent.
What fired on a rank's tokens, and its running means, the others take in only where they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.types import DataProvider
from safetensors import SafetensorError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from sae_lens_hsae.sae.bad_batches import BadBatchError, CheckedActivationScaler
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.training.distributed.ranks import Ranks, StepOfAll
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer


class BadElsewhereError(BadBatchError):
    """This rank's part of a batch is good, another's is not: nobody trains on it."""


class DataParallelTrainer(HierarchicalSAETrainer):
    """`HierarchicalSAETrainer` on one of several ranks, each with ``1 / n_ranks`` of every batch.

    The configuration is that of the whole: its batch size and numbers of samples are those of all ranks together. All
    methods are called on all ranks alike. ``save_text`` writes a rank's position in its text to a checkpoint's folder;
    rank 0's is written by SAELens.
    """

    ranks: Ranks
    save_text: Callable[[Path], None]
    _all_stop: bool = False

    @override
    def fit(self) -> HierarchicalTrainingSAE:
        self.activation_scaler = SharedActivationScaler(self.activation_scaler, self.ranks)
        self.ranks.take_from_first(self.sae.buffers())
        self.sae.forest_updater.forget()
        with gradients_averaged(self.sae):
            self.sae.whole_batch_l0 = self._whole_batch_l0
            self.sae.whole_batch = self.ranks.gather
            try:
                return super().fit()
            finally:
                self.sae.whole_batch_l0 = self.sae.whole_batch = None

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        before = self.n_training_samples
        output = super().step(batch)
        self.n_training_samples = before + self.ranks.n_ranks * len(output.sae_in)
        return output

    @override
    def _train_step(self, sae: HierarchicalTrainingSAE, sae_in: torch.Tensor) -> TrainStepOutput:
        counted, self.act_freq_scores = self.act_freq_scores, torch.zeros_like(self.act_freq_scores)
        try:
            return super()._train_step(sae, sae_in)
        except BadBatchError as error:
            if not isinstance(error, BadElsewhereError):
                self._agree(sae.sparsity.l0_ema, bad=True)
            # Those whose part was good have gone further, and have normalised the decoder and updated the forest.
            parameters = [parameter.data for parameter in sae.parameters()]
            self.ranks.take_from_first([*parameters, sae.parents, sae.forest_updater.reparented_share])
            sae.forest_updater.forget()
            raise
        finally:
            self.act_freq_scores += counted

    def _whole_batch_l0(self, l0: torch.Tensor) -> torch.Tensor:
        """L0 over all ranks. The step counts from here on, so here they agree that it is one to be taken."""
        of_all = self._agree(l0, bad=False)
        if of_all.bad:
            where = ", ".join(map(str, of_all.bad))
            raise BadElsewhereError(f"a part of this batch is bad, that of rank {where}, which says why")
        return of_all.l0

    def _agree(self, l0: torch.Tensor, *, bad: bool) -> StepOfAll:
        of_all = self.ranks.agree_on_step(l0, bad=bad, stop=self.stop_requested)
        self._all_stop |= of_all.stop
        return of_all

    @override
    def _must_stop(self) -> bool:
        # Not as soon as this rank is asked to: the others are told with its next step, and all stop after it.
        return self._all_stop

    @override
    def _after_step(self, *, forest_is_new: bool) -> None:
        sae = self.sae
        # Not on outlying tokens, on which a feature may be active and yet be silent.
        ended_silence = (sae.silent_features.tokens_since_fired == 0).float()
        self.ranks.add_up([self.act_freq_scores, ended_silence])
        self.n_forward_passes_since_fired[self.act_freq_scores > 0] = 0
        if not sae.standardization.is_observing(sae.forest_updater.steps_taken() - 1):
            # Each rank counts its own part of the batch.
            of_others = self.cfg.train_batch_size_samples * (self.ranks.n_ranks - 1) // self.ranks.n_ranks
            sae.silent_features.tokens_since_fired.add_(of_others).masked_fill_(ended_silence > 0, 0)
        if forest_is_new:
            # Already equal, but for rounding where ranks have GPUs of different kinds.
            self.ranks.take_from_first([sae.parents, sae.forest_updater.reparented_share])
            sae.forest_updater.forget()
        if sae.running_means_are_due():
            self._share_what_was_counted()

    def _share_what_was_counted(self) -> None:
        self.ranks.average(self.sae.running_means())
        if self.sae.forest_updater.recent is not None:
            self.sae.forest_updater.recent.share(self.ranks.told_by_all, self.ranks.n_ranks)

    @override
    def _look(self, output: TrainStepOutput) -> None:
        if self.ranks.is_first:
            super()._look(output)

    @override
    def build_train_step_log_dict(self, output: TrainStepOutput, n_training_samples: int) -> dict[str, Any]:
        """SAELens', each number the mean over ranks."""
        log = super().build_train_step_log_dict(output, n_training_samples)
        return dict(zip(log, self.ranks.mean_of_numbers(log.values()), strict=True))

    @override
    def set_final_sae_metadata(self) -> None:
        self._share_what_was_counted()
        super().set_final_sae_metadata()

    @override
    def save_checkpoint(
        self, checkpoint_name: str, base_path: Path | str | None = None, wandb_aliases: list[str] | None = None
    ) -> None:
        """Rank 0 writes the checkpoint, and in it every rank its position in its text; an OSError if one could not."""
        self._share_what_was_counted()
        if self.ranks.is_first:
            super().save_checkpoint(checkpoint_name, base_path, wandb_aliases)
        elif (base_path if base_path is not None else self.cfg.checkpoint_path) is not None:
            self._complete_checkpoint(None)

    @override
    def _complete_checkpoint(self, folder: Path | None) -> None:
        folder = self.ranks.told_by_first(folder)
        assert folder is not None
        error = None
        if not self.ranks.is_first:
            try:
                self.save_text(folder)
            except (OSError, SafetensorError) as fault:
                error = str(fault)
        for rank, of_rank in enumerate(self.ranks.told_by_all(error)):
            if of_rank is not None:
                raise OSError(
                    f"rank {rank}: {of_rank}; every rank writes to checkpoint_path, so all machines must share it"
                )


class SharedActivationScaler(CheckedActivationScaler):
    """SAELens' scaler with one factor for all ranks, of what all have seen."""

    def __init__(self, scaler: ActivationScaler, ranks: Ranks) -> None:
        super().__init__(scaler.scaling_factor, scaler.whitening)
        self._ranks = ranks

    @override
    def estimate_scaling_factor(
        self, d_in: int, data_provider: DataProvider, n_batches_for_norm_estimate: int = 1000
    ) -> None:
        super().estimate_scaling_factor(d_in, data_provider, n_batches_for_norm_estimate)
        assert self.scaling_factor is not None
        own_norm = d_in**0.5 / self.scaling_factor if self.scaling_factor else math.inf
        (norm,) = self._ranks.mean_of_numbers([own_norm])
        self.scaling_factor = d_in**0.5 / norm


class _Step(nn.Module):
    """One training step as a module, which is what torch distributes.

    It has the SAE's parameters and not its buffers: torch would send those before each step.
    """

    def __init__(self, sae: HierarchicalTrainingSAE) -> None:
        super().__init__()
        self.of_sae = nn.ParameterList(sae.parameters())
        self._forward_pass = sae.training_forward_pass

    def forward(self, step_input: TrainStepInput) -> TrainStepOutput:
        return self._forward_pass(step_input)


@contextmanager
def gradients_averaged(sae: HierarchicalTrainingSAE) -> Iterator[None]:
    """Within, the gradients of the SAE's training steps are the means over ranks, sent while others are computed.

    All ranks begin with the parameters of rank 0.
    """
    step = DistributedDataParallel(_Step(sae), gradient_as_bucket_view=True)
    compiled = vars(sae).get("training_forward_pass")
    # In the instance, where SAELens puts a compiled one; a function, as a module would become a part of the SAE.
    sae.training_forward_pass = lambda step_input: step(step_input)
    try:
        yield
    finally:
        del sae.training_forward_pass
        if compiled is not None:
            sae.training_forward_pass = compiled
