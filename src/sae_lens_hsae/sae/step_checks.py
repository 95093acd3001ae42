"""When a training step is checked: within it, or a step later where nothing may wait for a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.bad_batches import check_activations, check_losses, check_told
from sae_lens_hsae.sae.gpu_step.late_checks import LateChecks


class StepChecks:
    """The checks of a training SAE's steps; a copy of the SAE checks within its steps.

    Attributes:
        late: set by a trainer that leaves parameters as they are where these say so.
        n_dead: dead features of every level a step ago, where the late checks have told them.
    """

    def __init__(self) -> None:
        self.late: LateChecks | None = None
        self.n_dead: tuple[int, ...] | None = None

    def __reduce__(self) -> Any:
        return StepChecks, ()

    def before(self, x: torch.Tensor, step: int, sae: nn.Module, levels: Levels, *, in_time: bool) -> None:
        """Check a step's activations (batch, d_in), ``in_time`` at once, and what late checks tell of the last step.

        A BadBatchError if one of the two batches is bad, a ValueError if parameters are NaN or infinite.
        """
        if not sae.training:  # what was told of the step before is for the next one
            check_activations(x, step)
            return
        self.n_dead = None
        if self.late is not None and (told := self.late.receive()) is not None:
            self.n_dead = told.n_dead
            check_told(told, sae.named_parameters(), levels)
        if self.late is None or in_time or not len(x):
            check_activations(x, step)

    def after(
        self,
        losses: Mapping[str, torch.Tensor],
        squared_errors: torch.Tensor,
        x: torch.Tensor,
        dead: torch.Tensor | None,
        step: int,
        sae: nn.Module,
        levels: Levels,
        *,
        in_time: bool,
    ) -> torch.Tensor | None:
        """Check a step's losses, with the errors of `before`, or a step later: then 1, or 0 where it is bad, ().

        ``squared_errors`` are means of every level, (L,); ``dead`` (d_sae,) is None where the trainer keeps no account.
        """
        if self.late is None or in_time:
            check_losses(losses, squared_errors, x, sae.named_parameters(), levels, step)
            return None
        n_dead = torch.zeros(len(levels), device=x.device)
        if dead is not None:
            n_dead = torch.stack([own.sum() for own in levels.split(dead)])
        self.late.send(step, x, torch.stack(list(losses.values())).sum(), n_dead)
        return self.late.good
