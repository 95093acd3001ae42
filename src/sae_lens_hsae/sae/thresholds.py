"""The thresholds of a training: learned by JumpReLU levels, running means with BatchTopK levels."""

from __future__ import annotations

import torch
from torch import nn

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.batch_topk import BatchTopKLevels, follow_threshold
from sae_lens_hsae.sae.jumprelu import JumpReLULevels
from sae_lens_hsae.sae.level_activation import LevelActivation
from sae_lens_hsae.sae.step_output import Activations


class LearnedThresholds(nn.Module):
    """``threshold`` θ (d_sae,), a parameter in float32: in half precision its steps would be rounded away."""

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        start = torch.full((cfg.d_sae,), cfg.jumprelu_init_threshold, dtype=torch.float32, device=device)
        self.threshold = nn.Parameter(start)

    def rule(self, weights: torch.Tensor | None = None) -> LevelActivation:  # noqa: ARG002 - for BatchTopK
        return JumpReLULevels(self.threshold, self._cfg.jumprelu_bandwidth, self._cfg.jumprelu_ste_to_input)

    def follow(self, acts: Activations, n_before: int, good: torch.Tensor | None = None) -> None:
        """Take a batch into the thresholds: nothing, as the optimizer moves them."""

    def running_means(self) -> list[torch.Tensor]:
        return []


class RunningThresholds(nn.Module):
    """``threshold`` (d_sae,), a buffer: the same for all features of a level, which fire by it outside of training."""

    threshold: torch.Tensor

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        self.register_buffer("threshold", torch.zeros(cfg.d_sae, dtype=torch.float32, device=device))

    def rule(self, weights: torch.Tensor | None = None) -> LevelActivation:
        """What makes features fire: by the batch, whose tokens have weights (batch,), only in training."""
        cfg = self._cfg
        if self.training:
            scale = None if weights is None else weights.sqrt()
            return BatchTopKLevels(cfg.levels, cfg.target_l0_per_level, self.threshold, scale)
        return JumpReLULevels(self.threshold, cfg.jumprelu_bandwidth, cfg.jumprelu_ste_to_input)

    @torch.no_grad()
    def follow(self, acts: Activations, n_before: int, good: torch.Tensor | None = None) -> None:
        """Take a batch into the thresholds, after this many others; nothing where ``good`` is 0, ()."""
        smallest = acts.smallest()
        if good is not None:
            smallest = [least.masked_fill(good == 0, torch.inf) for least in smallest]
        follow_threshold(self.threshold, smallest, self._cfg.levels, n_before)

    def running_means(self) -> list[torch.Tensor]:
        return [self.threshold]


def thresholds_of(cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> LearnedThresholds | RunningThresholds:
    kind = RunningThresholds if cfg.level_activation == "batchtopk" else LearnedThresholds
    return kind(cfg, device)
