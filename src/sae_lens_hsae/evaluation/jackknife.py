"""Confidence intervals by leaving out one block of tokens at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import stdtrit


class Interval(NamedTuple):
    """A confidence interval; both ends NaN if there is none."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def jackknife_interval(
    value: float, without: Sequence[float] | torch.Tensor, sizes: torch.Tensor, confidence: float
) -> Interval:
    """``value`` ± t · s: the jackknife's standard error over blocks, and Student's t of one degree fewer than blocks.

    Takes the metric on all tokens, ``without`` each block in turn, and the tokens of each block; NaN at both ends with
    fewer than two blocks, or if any of the values is NaN.

    Blocks may differ in size (Busing, Meijer & van der Leeden 1999, *Delete-m jackknife for unequal m*); of equal
    blocks it is the ordinary jackknife. The interval is symmetric and not cut where the metric's range ends.

    It takes blocks as independent. So they should be longer than the texts that the tokens come from; if tokens of one
    text are spread over the blocks, as a shuffling store does, the interval knows nothing of the variation between
    texts. It has no width where all blocks give the same value.
    """
    n_blocks = len(sizes)
    left_out = torch.as_tensor(without, dtype=torch.float64).cpu()
    if n_blocks < 2 or math.isnan(value) or bool(left_out.isnan().any()):
        return Interval(math.nan, math.nan)
    share = sizes.double() / sizes.sum()
    pseudo_values = (value - (1 - share) * left_out) / share
    center = n_blocks * value - ((1 - share) * left_out).sum()
    variance = ((pseudo_values - center).square() * share / (1 - share)).mean()
    reach = float(stdtrit(n_blocks - 1, (1 + confidence) / 2)) * variance.sqrt().item()
    return Interval(value - reach, value + reach)
