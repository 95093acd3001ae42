"""What is wrong with a training step whose numbers are not finite: which level, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.types import DataProvider
from typing_extensions import override

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.gpu_step.late_checks import Told

CHECK_INPUT = (
    "check the model's dtype (float16 overflows in some models) and normalize_activations, whose factor is 0 after an "
    "infinite activation"
)
SCALE = 'scale the activations with normalize_activations="expected_average_only_in", or leave out such text'


class BadBatchError(ValueError):
    """A batch that cannot be trained on.

    Nothing has changed by then, unless decoder rows were brought to unit norm: the next batch can follow.

    Attributes:
        of_last_step: whether it was the batch of the step before; then the batch at hand is still to be trained on.
    """

    of_last_step: bool = False


class CheckedActivationScaler(ActivationScaler):
    """SAELens' scaler, which would answer activations that are all zero with a ``ZeroDivisionError``."""

    @override
    def estimate_scaling_factor(
        self, d_in: int, data_provider: DataProvider, n_batches_for_norm_estimate: int = 1000
    ) -> None:
        """SAELens' estimate; a ValueError if there is nothing to scale."""
        try:
            super().estimate_scaling_factor(d_in, data_provider, n_batches_for_norm_estimate)
        except ZeroDivisionError as error:
            raise ValueError(
                f"the activations of the {n_batches_for_norm_estimate} batches before training, which their scale is "
                f"estimated from, are all zero; check the hook point and the text"
            ) from error


def check_activations(x: torch.Tensor, step: int) -> None:
    """Raise a BadBatchError if activations (batch, d_in) are NaN, infinite or all zero, or there are none."""
    if not len(x):
        raise BadBatchError(f"the batch of training step {step} holds no token; drop such batches from the data")
    peak = float(x.detach().abs().amax())
    if 0 < peak < math.inf:
        return
    if peak == 0:
        fault = "all zero"
    else:
        nan, infinite = int(x.isnan().any(-1).sum()), int(x.isinf().any(-1).sum())
        fault = f"in part NaN or infinite (of {len(x)} tokens, {nan} have NaN and {infinite} infinite entries)"
    raise BadBatchError(f"the activations of training step {step} are {fault}; {CHECK_INPUT}")


def check_told(told: Told, parameters: Iterable[tuple[str, torch.Tensor]], levels: Levels) -> None:
    """Check what is known of the step before, with the errors of the other checks; a bad batch has changed nothing."""
    if 0 < told.peak < math.inf and math.isfinite(told.loss):
        return
    check_parameters(parameters, levels, f"before training step {told.step + 1}")
    if told.peak == 0:
        fault = "its activations are all zero"
    elif not math.isfinite(told.peak):
        fault = f"some of its activations are NaN or infinite; {CHECK_INPUT}"
    else:
        fault = f"its losses overflow, though activations (up to {told.peak:.3g}) and parameters are finite; {SCALE}"
    error = BadBatchError(f"the batch of training step {told.step} was bad: {fault}")
    error.of_last_step = True
    raise error


def check_losses(
    losses: Mapping[str, torch.Tensor],
    squared_errors: torch.Tensor,
    x: torch.Tensor,
    parameters: Iterable[tuple[str, torch.Tensor]],
    levels: Levels,
    step: int,
) -> None:
    """Check that a step's losses () are finite; ``squared_errors`` (n_levels,) are means, x is (batch, d_in).

    A ValueError if parameters are NaN or infinite: training has diverged, and no other batch would help. A
    BadBatchError if they are not, so that numbers overflow with this batch alone.
    """
    if math.isfinite(float(torch.stack(list(losses.values())).sum())):
        return
    check_parameters(parameters, levels, f"before training step {step}")
    terms = ", ".join(name for name, loss in losses.items() if not loss.isfinite())
    bad = (~squared_errors.isfinite()).nonzero().flatten().tolist()
    where = f" at level {', '.join(map(str, bad))}" if bad else ""
    raise BadBatchError(
        f"{terms or 'the sum of the losses'} of training step {step} overflows{where}, though activations (up to "
        f"{float(x.abs().amax()):.3g}) and parameters are finite; {SCALE}"
    )


def check_parameters(parameters: Iterable[tuple[str, torch.Tensor]], levels: Levels, when: str) -> None:
    """Raise a ValueError naming the first parameter that is NaN or infinite, its levels and the remedy."""
    for name, parameter in parameters:
        finite = parameter.detach().isfinite()
        if bool(finite.all()):
            continue
        if name == "W_enc":
            finite = finite.T
        rows = ~finite.reshape(len(finite), -1).all(1)
        per_level = [rows[level : level + 1] for level in range(len(levels))] if name == "b_dec" else None
        own = per_level or [rows[features] for features in levels]
        bad = [str(level) for level, of_level in enumerate(own) if bool(of_level.any())]
        raise ValueError(
            f"training has diverged: {when}, {name} is NaN or infinite in {int((~finite).sum())} places, at level "
            f"{', '.join(bad)}; resume from the last checkpoint with a lower lr"
        )
