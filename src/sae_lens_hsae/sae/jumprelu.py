"""JumpReLU levels: every feature learns a threshold, and λ decides how many features fire (HSAE §3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sae_lens.saes.jumprelu_sae import JumpReLU, Step

from sae_lens_hsae.sae.level_activation import Activated, PreActivations


class JumpReLULevels(NamedTuple):
    """JumpReLU with SAELens' straight-through estimator, as a `LevelActivation`."""

    threshold: torch.Tensor  # θ, (n_features,)
    bandwidth: float  # ε, width of the estimator
    ste_to_input: bool  # whether its gradient also reaches the pre-activations

    def found(self, pre: PreActivations) -> torch.Tensor:
        """Everything above θ − ε/2: the value lives above θ, the gradient within ε/2 of it."""
        return pre.above(self.threshold.detach().to(pre.bias.dtype) - self.bandwidth / 2)

    def at(self, pre: torch.Tensor, features: torch.Tensor) -> Activated:
        # SAELens' functions sum a threshold's gradient over the first dimension: it has length 1 here.
        threshold = self.threshold.to(pre.dtype).index_select(0, features)
        of_entries = self._replace(threshold=threshold).of_all(pre.unsqueeze(0))
        return Activated(of_entries.values.squeeze(0), of_entries.fired.squeeze(0))

    def of_all(self, hidden_pre: torch.Tensor) -> Activated:
        settings = (self.threshold.to(hidden_pre.dtype), self.bandwidth, self.ste_to_input)
        return Activated(JumpReLU.apply(hidden_pre, *settings), Step.apply(hidden_pre, *settings))
