"""The output of a training step on active entries, in which what only some callers read is made when they read it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from typing_extensions import override

from sae_lens_hsae.active_entries import ActiveEntries


class EntriesStepOutput(TrainStepOutput):
    """SAELens' output of a step; ``feature_acts`` and ``hidden_pre`` are made from the entries, without gradient.

    Each is a pass over (batch, d_sae) numbers, and a tensor of that size.
    """

    @override
    def __init__(self, acts: ActiveEntries, **others: Any) -> None:
        """Keep the entries.

        Args:
            acts: in place of ``feature_acts`` and ``hidden_pre``.
            others: SAELens' other fields.
        """
        self._acts = acts
        self.__dict__.update(others)

    @cached_property
    def feature_acts(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(batch, d_sae)."""
        return self._acts.dense()

    @cached_property
    def hidden_pre(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(batch, d_sae)."""
        return self._acts.pre_activations.dense()

    def times_fired(self) -> torch.Tensor:
        """Tokens on which each feature is active, (d_sae,)."""
        return self._acts.times_fired()
