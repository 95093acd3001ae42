"""How much the activations of a stream vary."""

from __future__ import annotations

import torch

from sae_lens_hsae.evaluation.boundary_metrics import float64
from sae_lens_hsae.evaluation.token_blocks import TokenBlocks


class SpreadTally:
    """Σ‖x − mean‖² over a stream.

    A stretch of tokens is summed around its own mean, and stretches in float64 around the first one's. Subtracting
    n·mean² from Σx² instead would lose all digits where the mean is large, as in residual streams.
    """

    def __init__(self, blocks: TokenBlocks, d_in: int) -> None:
        self._blocks = blocks
        self._x = blocks.table(d_in, dtype=torch.float64)
        self._squares = blocks.table(dtype=torch.float64)
        self._first = self._origin = torch.zeros(0)
        self._varies = False

    def add(self, x: torch.Tensor) -> None:
        if not len(self._first):
            self._first, self._origin = x[0], float64(x.mean(0)).cpu()
        # Rounding makes the spread of equal numbers a little more than 0.
        self._varies = self._varies or bool((x != self._first).any())
        start = 0
        for block, size in self._blocks.sizes_in_chunk:
            stretch = x[start : start + size]
            mean = stretch.mean(0)
            shift = float64(mean).cpu() - self._origin
            self._x.add_to(block, shift * size)
            self._squares.add_to(block, float64((stretch - mean).square().sum()).cpu() + shift.square().sum() * size)
            start += size

    @property
    def total(self) -> float:
        """0 if, and only if, all tokens are equal."""
        spread = self._squares.total - self._x.total.square().sum() / self._blocks.n_tokens
        return spread.item() if self._varies else 0.0

    @property
    def without(self) -> torch.Tensor:
        """(blocks,) without each block in turn; NaN where nothing is left that varies."""
        n = self._blocks.n_tokens - self._blocks.sizes
        x = (self._x.total - self._x.per_block).square().sum(1)
        spread = self._squares.total - self._squares.per_block - x / n
        return torch.where(spread > 0, spread, torch.nan)
