"""A stack of levels that are kept sparse while they are trained: what makes features fire, and how many."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from sae_lens_hsae.sae.auxiliary_loss import SILENT_INTERVALS
from sae_lens_hsae.sae.batch_topk import BatchTopKLevels, follow_threshold
from sae_lens_hsae.sae.inference import LevelStack
from sae_lens_hsae.sae.jumprelu import JumpReLULevels
from sae_lens_hsae.sae.level_activation import LevelActivation
from sae_lens_hsae.sae.sparsity_control import SparsityState, control_sparsity, follow_l0, initial_state
from sae_lens_hsae.sae.step_output import Activations


class SparseLevels(LevelStack):
    """Mixed in before SAELens' training class.

    Keeps ``l0_ema`` (L,), the running mean of every level's L0, and ``tokens_since_fired`` (d_sae,). With JumpReLU
    levels ``threshold`` (d_sae,) is learned and ``log_l0_coefficient`` (L,) steered. With BatchTopK levels
    ``threshold`` is no parameter but a running mean, the same for all features of a level, by which features fire
    outside of training.
    """

    log_l0_coefficient: torch.Tensor
    l0_ema: torch.Tensor
    tokens_since_fired: torch.Tensor

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        # θ and the controller move by steps that a half-precision number of their size would round away.
        kind: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        state = initial_state(len(self.levels), cfg.jumprelu_init_threshold, self.device)
        self.register_buffer("l0_ema", state.l0_ema)
        self.register_buffer("tokens_since_fired", torch.zeros(cfg.d_sae, dtype=torch.int64, device=self.device))
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
        return (*super().exact_tensors, "threshold", "l0_ema", "tokens_since_fired", *steered)

    def silent(self) -> torch.Tensor:
        """Which features have not fired for `SILENT_INTERVALS` mean intervals of their level, (d_sae,) bool."""
        pairs = zip(self.levels.widths, self.cfg.target_l0_per_level, strict=True)
        limits = [SILENT_INTERVALS * width / target for width, target in pairs]
        per_level = zip(self.levels.split(self.tokens_since_fired), limits, strict=True)
        return torch.cat([own > limit for own, limit in per_level])

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
    def follow_sparsity(
        self, acts: Activations, l0: torch.Tensor, batch: int, step: int, good: torch.Tensor | None = None
    ) -> None:
        """After a step: count what fired, and steer λ for the next one or take the batch into the running thresholds.

        Args:
            acts: of the batch.
            l0: of every level on it, and on what other processes have of it, (L,) float32.
            batch: tokens in the batch.
            step: steps taken before.
            good: 1, or 0 if the batch turns out to be bad, so that nothing is to move; ().
        """
        cfg = self.cfg
        self.tokens_since_fired.add_(batch).masked_fill_(acts.times_fired() > 0, 0)
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
