"""Outlying tokens, such as attention sinks: which they are, and what a level explains of all the others.

A sink may be a thousand times as large as other tokens, and a few of them hold most of a stream's variance. Variance
explained is then a statement about them alone, so it is also given without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch

from sae_lens_hsae.evaluation.token_blocks import SpreadTally, TokenBlocks

OUTLYING = 3.0
"""A token is outlying if it is further from the centre than this many times the median distance."""

SEEN_FIRST = 1024
"""Tokens at the beginning of a stream that say what is usual."""

FEWEST_TOKENS = 8
"""Fewer do not say what is usual."""


class Usual(NamedTuple):
    """Where tokens usually lie."""

    centre: torch.Tensor  # (d_in,)
    limit: torch.Tensor  # (), the distance beyond which a token is outlying

    def holds(self, x: torch.Tensor) -> torch.Tensor:
        """Which tokens (…, d_in) are ordinary, (…) bool."""
        return (x - self.centre.to(x)).norm(dim=-1) <= self.limit.to(x.device)


def usual(first: torch.Tensor) -> Usual:
    """Where tokens (n, d_in) lie, by their median distance from the centre; if most are the same, none is outlying."""
    centre = first.median(0).values
    median = (first - centre).norm(dim=1).median()
    return Usual(centre, torch.where(median > 0, OUTLYING * median, torch.inf))


class Outliers:
    """Tells outlying tokens of a stream from ordinary ones, and keeps Σ‖x − mean‖² of the latter."""

    def __init__(self, first: torch.Tensor) -> None:
        """Take the centre and the median distance from the first tokens, (n, d_in)."""
        self._usual = usual(first)
        self._ordinary = TokenBlocks(1)
        self._spread = SpreadTally(self._ordinary, first.shape[1])

    def ordinary(self, x: torch.Tensor) -> torch.Tensor:
        """Which of the next tokens (n, d_in) are ordinary, (n,) bool."""
        ordinary = self._usual.holds(x)
        if ordinary.any():
            self._ordinary.extend(int(ordinary.sum()))
            self._spread.add(x[ordinary])
        return ordinary

    @property
    def n_ordinary(self) -> int:
        return self._ordinary.n_tokens

    @property
    def spread(self) -> float:
        """Σ‖x − mean‖² of the ordinary tokens; NaN where they do not vary."""
        return self._spread.total or math.nan


def begun(chunks: Iterator[torch.Tensor]) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    """The first `SEEN_FIRST` tokens of a stream of chunks (n, d_in), and the whole stream again."""
    first, n = [], 0
    for chunk in chunks:
        first.append(chunk)
        n += len(chunk)
        if n >= SEEN_FIRST:
            break
    return torch.cat(first)[:SEEN_FIRST] if first else torch.zeros(0, 0), chain(first, chunks)
