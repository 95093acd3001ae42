"""Sums over blocks of consecutive tokens, and how much they vary, for a stream of a length that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sae_lens_hsae.evaluation.boundary_metrics import float64


class TokenBlocks:
    """Cuts a stream into blocks of equal ``length``: more than ``n_blocks`` of them and at most twice as many.

    A block begins as one token. Whenever 2 · ``n_blocks`` are full, neighbours are merged and all blocks are twice as
    long from then on. So memory is bounded, a block is a contiguous stretch of the stream, and where it ends depends on
    the number of tokens alone, not on the batches they came in. The last block may be shorter. A stream of fewer than
    ``n_blocks`` tokens has a block per token.
    """

    def __init__(self, n_blocks: int) -> None:
        self.capacity = 2 * n_blocks
        self.length = 1
        self.n_tokens = 0
        self._chunk_start = 0
        self._tables: list[BlockTable] = []

    def table(self, *shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> BlockTable:
        """A new table of zeros with an entry of this shape for every block; made before the first token."""
        table = BlockTable(self, torch.zeros(self.capacity, *shape, dtype=dtype, device=device))
        self._tables.append(table)
        return table

    def extend(self, n_tokens: int) -> None:
        """Begin a chunk of this many tokens; the tables then number them from 0."""
        self._chunk_start = self.n_tokens
        self.n_tokens += n_tokens
        while self.n_tokens > self.capacity * self.length:
            for table in self._tables:
                table.merge_neighbours()
            self.length *= 2

    def block_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The blocks that tokens of the present chunk are in."""
        return (tokens + self._chunk_start) // self.length

    @property
    def in_chunk(self) -> range:
        return range(self._chunk_start // self.length, (self.n_tokens - 1) // self.length + 1)

    @property
    def sizes_in_chunk(self) -> Iterator[tuple[int, int]]:
        """Each of them, and how many tokens of the chunk it has."""
        for block in self.in_chunk:
            first, last = block * self.length, (block + 1) * self.length
            yield block, min(last, self.n_tokens) - max(first, self._chunk_start)

    @property
    def sizes(self) -> torch.Tensor:
        """(blocks,) int64: tokens of each block that has any."""
        starts = torch.arange(0, self.n_tokens, self.length)
        return (self.n_tokens - starts).clamp(max=self.length)


class BlockTable:
    """One entry per block, summed over the block's tokens."""

    def __init__(self, blocks: TokenBlocks, entries: torch.Tensor) -> None:
        self._blocks = blocks
        self._entries = entries

    def count(self, tokens: torch.Tensor, items: torch.Tensor) -> None:
        """Add 1 at each (token, item); the entries are (n_items,), the arguments (k,) each."""
        blocks, n_items, place = self._blocks.in_chunk, self._entries.shape[1], items
        if len(blocks) > 1:
            place = (self._blocks.block_of(tokens) - blocks.start) * n_items + items
        counts = torch.bincount(place, minlength=len(blocks) * n_items).view(len(blocks), n_items)
        self._entries[blocks.start : blocks.stop] += counts

    def add(self, tokens: torch.Tensor, values: torch.Tensor) -> None:
        """Add values (k, *shape of an entry) that belong to tokens (k,)."""
        block = self._blocks.block_of(tokens).to(self._entries.device)
        self._entries.index_add_(0, block, values.to(self._entries))

    def add_to(self, block: int, value: torch.Tensor) -> None:
        self._entries[block] += value.to(self._entries)

    def add_chunk(self, values: torch.Tensor) -> None:
        """Add values (tokens, *shape of an entry) of all tokens of the chunk, in their order."""
        start = 0
        for block, size in self._blocks.sizes_in_chunk:
            self.add_to(block, values[start : start + size].sum(0))
            start += size

    def merge_neighbours(self) -> None:
        half = len(self._entries) // 2
        self._entries[:half] = self._entries[0::2] + self._entries[1::2]
        self._entries[half:] = 0

    @property
    def per_block(self) -> torch.Tensor:
        """(blocks, *shape of an entry), of the blocks that have tokens."""
        return self._entries[: len(self._blocks.sizes)]

    @property
    def total(self) -> torch.Tensor:
        """The sum over all blocks; whole numbers in int64."""
        entries = self.per_block
        return entries.sum(0, dtype=entries.dtype if entries.is_floating_point() else torch.int64)


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
