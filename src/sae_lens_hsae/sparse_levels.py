"""A stack of levels that are kept sparse while they are trained: what makes features fire, and how many."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from sae_lens_hsae.batch_topk import BatchTopKLevels, follow_threshold
from sae_lens_hsae.hierarchical_sae import LevelStack
from sae_lens_hsae.jumprelu import JumpReLULevels
from sae_lens_hsae.level_activation import LevelActivation
from sae_lens_hsae.sparsity_control import SparsityState, control_sparsity, follow_l0, initial_state
from sae_lens_hsae.step_output import Activations


class SparseLevels(LevelStack):
    """Mixed in before SAELens' training class.

    Keeps ``l0_ema`` (L,), the running mean of every level's L0. With JumpReLU levels ``threshold`` (d_sae,) is learned
    and ``log_l0_coefficient`` (L,) steered. With BatchTopK levels ``threshold`` is no parameter but a running mean, the
    same for all features of a level, by which features fire outside of training.
    """

    log_l0_coefficient: torch.Tensor
    l0_ema: torch.Tensor

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        # θ and the controller move by steps that a half-precision number of their size would round away.
        kind: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        state = initial_state(len(self.levels), cfg.jumprelu_init_threshold, self.device)
        self.register_buffer("l0_ema", state.l0_ema)
        if self.has_batch_topk:
            self.register_buffer("threshold", torch.zeros(cfg.d_sae, **kind))
        else:
            self.threshold = nn.Parameter(torch.full((cfg.d_sae,), cfg.jumprelu_init_threshold, **kind))
            self.register_buffer("log_l0_coefficient", state.log_coefficient)

    @property
    def has_batch_topk(self) -> bool:
        """Whether the levels are BatchTopK's."""
        return self.cfg.level_activation == "batchtopk"

    @property
    @override
    def exact_tensors(self) -> tuple[str, ...]:
        steered = () if self.has_batch_topk else ("log_l0_coefficient",)
        return (*super().exact_tensors, "threshold", "l0_ema", *steered)

    def running_thresholds(self) -> list[torch.Tensor]:
        """The thresholds, if they are running means."""
        return [self.threshold] if self.has_batch_topk else []

    def activation_rule(self) -> LevelActivation:
        """What makes features fire: by the batch only in training."""
        cfg = self.cfg
        if self.has_batch_topk and self.training:
            return BatchTopKLevels(self.levels, cfg.target_l0_per_level, self.threshold)
        return JumpReLULevels(self.threshold, cfg.jumprelu_bandwidth, cfg.jumprelu_ste_to_input)

    @torch.compiler.disable()
    def sparsity(self) -> SparsityState:
        """The sparsity control as it is now."""
        # Copies, because a compiled graph keeps what it reads for its backward pass, which runs after it has moved.
        log_coefficient = None if self.has_batch_topk else self.log_l0_coefficient.clone()
        return SparsityState(log_coefficient, self.l0_ema.clone())

    @torch.no_grad()
    def follow_sparsity(self, acts: Activations, l0: torch.Tensor, step: int, good: torch.Tensor | None = None) -> None:
        """After a step: steer λ for the next one, or take the batch into the running thresholds.

        Args:
            acts: of the batch.
            l0: of every level on it, and on what other processes have of it, (L,) float32.
            step: steps taken before.
            good: 1, or 0 if the batch turns out to be bad, so that nothing is to move; ().
        """
        cfg = self.cfg
        if self.has_batch_topk:
            follow_threshold(self.threshold, acts.smallest(), self.levels, step)
            l0_ema = follow_l0(self.l0_ema, l0, cfg.l0_ema_momentum)
            self.l0_ema.copy_(l0_ema if good is None else torch.where(good > 0, l0_ema, self.l0_ema))
            return
        # Made on the host and sent, where it would else wait until the device has it.
        target = torch.tensor(cfg.target_l0_per_level).to(l0.device, non_blocking=True)
        state = control_sparsity(self.sparsity(), l0, target, cfg.sparsity_rate, cfg.sparsity_gain, cfg.l0_ema_momentum)
        assert state.log_coefficient is not None
        for buffer, moved in ((self.log_l0_coefficient, state.log_coefficient), (self.l0_ema, state.l0_ema)):
            buffer.copy_(moved if good is None else torch.where(good > 0, moved, buffer))
