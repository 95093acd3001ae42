"""What a training step works on, and its output, in which what only some callers read is made when they read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from typing_extensions import override

from sae_lens_hsae.sae.cpu_step.active_entries import ActiveEntries
from sae_lens_hsae.sae.dense_activations import DenseActivations
from sae_lens_hsae.sae.gpu_step.feature_rows import FeatureRows

Activations = DenseActivations | ActiveEntries | FeatureRows
"""The forms in which a batch's activations can be; all have the same values and gradients."""


class LazyStepOutput(TrainStepOutput):
    """SAELens' output of a step; ``feature_acts`` and ``hidden_pre`` are made when they are read, without gradient.

    Each is a pass over (batch, d_sae) numbers, and a tensor of that size.
    """

    @override
    def __init__(
        self, acts: ActiveEntries | FeatureRows, in_units_of_x: Callable[[torch.Tensor], torch.Tensor], **others: Any
    ) -> None:
        """Keep the activations.

        Args:
            acts: in place of ``feature_acts`` and ``hidden_pre``.
            in_units_of_x: makes them those of the activations as they are.
            others: SAELens' other fields.
        """
        self._acts, self._in_units_of_x = acts, in_units_of_x
        self.__dict__.update(others)

    @cached_property
    def feature_acts(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(batch, d_sae)."""
        return self._in_units_of_x(self._acts.dense())

    @cached_property
    def hidden_pre(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(batch, d_sae)."""
        return self._in_units_of_x(self._acts.pre_activations.dense())

    def times_fired(self) -> torch.Tensor:
        """Tokens on which each feature is active, (d_sae,)."""
        return self._acts.times_fired()
