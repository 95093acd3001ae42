"""Spearman's correlation of each parent with its strongest child, from a bounded sample of the stream."""

from __future__ import annotations

import torch

SAMPLE_PER_PARENT = 128
"""Tokens kept of each parent; up to this many the correlation is exact. At most 256, see below."""

MIN_TOKENS = 10
"""Tokens below which a parent has no correlation, as in the code of arXiv 2606.22994."""

MAX_COMPARISONS_AT_ONCE = 2**22


class RankSample:
    """For each parent a uniform sample of the tokens on which a child of it fires (reservoir sampling, Vitter 1985).

    Which tokens are kept depends on their position in the stream alone: not on batch sizes, nor on a random state.
    """

    def __init__(self, n_rows: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        shape = (n_rows, SAMPLE_PER_PARENT)
        self.seen = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.parent = torch.zeros(shape, dtype=dtype, device=device)
        self.strongest_child = torch.zeros(shape, dtype=dtype, device=device)

    def add(
        self, rows: torch.Tensor, tokens: torch.Tensor, parent: torch.Tensor, strongest_child: torch.Tensor
    ) -> None:
        """Offer (k,) events, ordered by row and then by token, which is numbered in the stream.

        Takes the activations of the parent, 0 if it is silent, and of its strongest child.
        """
        n_new = torch.bincount(rows, minlength=len(self.seen))
        before = n_new.cumsum(0) - n_new
        earlier = self.seen[rows] + torch.arange(len(rows), device=rows.device) - before[rows]
        drawn = _scrambled(tokens, rows) % (earlier + 1)
        slot = torch.where(earlier < SAMPLE_PER_PARENT, earlier, drawn)
        kept = (slot < SAMPLE_PER_PARENT).nonzero().flatten()
        place = (rows * SAMPLE_PER_PARENT + slot)[kept]
        # Where several events of one chunk would take the same place, the last one has it in the end.
        place, order = place.sort(stable=True)
        is_last = torch.ones_like(place, dtype=torch.bool)
        is_last[:-1] = place[1:] != place[:-1]
        place, event = place[is_last], kept[order[is_last]]
        for kept_values, values in (
            (self.tokens, tokens),
            (self.parent, parent),
            (self.strongest_child, strongest_child),
        ):
            kept_values.view(-1)[place] = values[event].to(kept_values.dtype)
        self.seen += n_new

    def correlations(self, tokens_per_block: int, n_blocks: int) -> torch.Tensor:
        """(n_rows, n_blocks + 1) float64: Spearman's ρ without each block of tokens in turn, and last with all.

        Equal activations share their mean rank. NaN with fewer than `MIN_TOKENS` tokens, or where the parent or its
        strongest child never varies.
        """
        found = torch.full((len(self.seen), n_blocks + 1), torch.nan, dtype=torch.float64)
        enough = (self.seen >= MIN_TOKENS).nonzero().flatten()
        # Rows of about as many tokens together: comparisons grow with the square of the longest row's.
        enough = enough[self.seen[enough].argsort()]
        if len(enough) == 0:
            return found
        for rows in enough.split(max(1, MAX_COMPARISONS_AT_ONCE // SAMPLE_PER_PARENT**2)):
            found[rows.cpu()] = self._correlations(rows, tokens_per_block, n_blocks)
        return found

    def _correlations(self, rows: torch.Tensor, tokens_per_block: int, n_blocks: int) -> torch.Tensor:
        n_sampled = self.seen[rows].clamp(max=SAMPLE_PER_PARENT)
        slots = slice(int(n_sampled.max()))
        tokens, parent, child = (kept[rows, slots] for kept in (self.tokens, self.parent, self.strongest_child))
        sampled = torch.arange(slots.stop, device=tokens.device) < n_sampled[:, None]
        in_block = torch.nn.functional.one_hot(tokens // tokens_per_block, n_blocks + 1)
        # The last column stands for no block at all.
        in_block = (in_block * sampled[..., None]).float()
        outside = sampled[..., None].float() - in_block
        x, y = _ranks(parent, in_block).mul_(outside), _ranks(child, in_block).mul_(outside)
        # Whole numbers below 2²⁴ up to here, so that float32 is exact, and a variance 0 where nothing varies.
        n, sum_x, sum_y, xy, xx, yy = (
            term.sum(1).cpu().double() for term in (outside, x, y, x * y, x * x, y * y)
        )  # on the CPU because Apple's GPU has no float64
        covariance, variance_x, variance_y = n * xy - sum_x * sum_y, n * xx - sum_x.square(), n * yy - sum_y.square()
        defined = (n >= MIN_TOKENS) & (variance_x > 0) & (variance_y > 0)
        return torch.where(defined, covariance / (variance_x * variance_y).sqrt(), torch.nan)


def _ranks(values: torch.Tensor, in_block: torch.Tensor) -> torch.Tensor:
    """Ranks (rows, tokens, blocks) among the tokens outside each block: how many are lower less how many are higher."""
    higher = (values[:, :, None] - values[:, None, :]).sign().float()
    by_block = higher @ in_block
    return by_block.sum(2, keepdim=True) - by_block


def _scrambled(tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A number from 0 to 2⁵³ − 1 for each (token, row), as good as random (SplitMix64's finaliser)."""
    z = tokens * -7046029254386353131 + rows * 0x5851F42D4C957F2D
    z = (z ^ ((z >> 30) & (2**34 - 1))) * -4658895280553007687
    z = (z ^ ((z >> 27) & (2**37 - 1))) * -7723592293110705685
    z = z ^ ((z >> 31) & (2**33 - 1))
    return z & (2**53 - 1)
