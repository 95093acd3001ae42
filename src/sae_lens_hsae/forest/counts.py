"""How often features fire, and fire together: counted on the tokens on which they fired (HSAE §3.3).

A matrix of all parents and children would be larger than the levels themselves. What fires on a token is few numbers,
so those are kept, and pairs are counted block by block when a forest is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from sae_lens_hsae.forest.levels import Levels

PRODUCT_OF_PAIRS = 400
"""Multiplications of a dense product in the time in which one pair is counted; measured on a CPU."""

TOKENS_AT_A_TIME = 2**16
"""Of a dense product."""

MOST_IN_FULL = 2**24
"""Numbers of a sparse matrix up to which it is read in full, which is faster."""

Numbers: TypeAlias = NDArray[Any]


class Firing(NamedTuple):
    """Which features fired on which tokens of a batch."""

    step: int  # of the training
    n_tokens: int  # of the batch
    times: Numbers  # tokens on which each feature fired, (n_features,) int32
    tokens: Numbers  # which ones, feature after feature; (times.sum(),), the smallest unsigned integers for them

    @classmethod
    def of(cls, fired: torch.Tensor, step: int) -> Firing:
        """Of whether each feature fires on each token, (n_features, n_tokens) bool."""
        features, tokens = torch.nonzero(fired, as_tuple=True)
        return cls.of_entries(features, tokens, fired.shape, step)

    @classmethod
    def of_entries(cls, features: torch.Tensor, tokens: torch.Tensor, shape: Sequence[int], step: int) -> Firing:
        """Of the features that fire and the tokens on which they do, (n,) each, ordered by feature."""
        n_features, n_tokens = shape
        times = as_array(torch.bincount(features, minlength=n_features)).astype(np.int32)
        return cls(step, n_tokens, times, as_array(tokens).astype(np.min_scalar_type(n_tokens)))


class Counts:
    """On what share of ``n_tokens`` tokens features fire, alone, ``frequency`` (n_features,) float32, and in pairs."""

    def __init__(self, batches: Sequence[Firing], levels: Levels) -> None:
        self._batches, self._levels = batches, levels
        self.n_tokens = sum(batch.n_tokens for batch in batches)
        times = sum((batch.times for batch in batches), np.zeros(levels.n_features, np.int64))
        self.frequency = torch.from_numpy((times / max(1, self.n_tokens)).astype(np.float32))

    def together(self, above: slice, below: slice) -> PairShares:
        """The share of tokens on which features of two levels both fire."""
        return PairShares(self._fired(above), self._fired(below), self.n_tokens)

    def _fired(self, level: slice) -> csr_array:
        """Ones where a feature fires on a token, (n_features of the level, n_tokens) float32."""
        features, tokens, before = [], [], 0
        for batch in self._batches:
            first, n = int(batch.times[: level.start].sum()), batch.times[level]
            features.append(np.repeat(np.arange(len(n), dtype=np.int32), n))
            tokens.append(batch.tokens[first : first + int(n.sum())].astype(np.int32) + np.int32(before))
            before += batch.n_tokens
        shape = level.stop - level.start, self.n_tokens
        if not tokens:
            return csr_array(shape, dtype=np.float32)
        places = np.concatenate(features), np.concatenate(tokens)
        return csr_array((np.ones(len(places[0]), np.float32), places), shape=shape)


class PairShares:
    """A matrix of n_parents rows and n_children columns of which blocks are made as they are read."""

    def __init__(self, parents: csr_array, children: csr_array, n_tokens: int) -> None:
        """Keep what fired, (n_parents, n_tokens) and (n_children, n_tokens)."""
        self._children, self._n_tokens = children, n_tokens
        on_parents, on_children = (np.bincount(fired.indices, minlength=n_tokens) for fired in (parents, children))
        n_pairs = int(on_parents @ on_children)
        n_cells = (len(parents.indptr) - 1) * (len(children.indptr) - 1)
        self._held: tuple[torch.Tensor, Any] | None = None
        self._parts: list[tuple[Any, Any]] = []
        if PRODUCT_OF_PAIRS * n_pairs <= n_cells * n_tokens:
            self._tokens = parents.T.tocsr()
        else:
            # So much fires that a product of ones and zeros is faster.
            parts = [slice(start, start + TOKENS_AT_A_TIME) for start in range(0, n_tokens, TOKENS_AT_A_TIME)]
            self._parts = [(parents[:, part], children[:, part]) for part in parts]

    def __getitem__(self, block: tuple[slice, torch.Tensor]) -> torch.Tensor:
        """Of a slice of m parents and k child indices, (m, k) float32."""
        above, below = block
        if self._parts:
            return self._by_products(above, as_array(below)).to(below.device)
        if self._held is None or not torch.equal(self._held[0], below):
            own = self._children[as_array(below)]
            counts = own @ self._tokens  # in full if it is small, else as a sparse matrix whose columns can be read
            is_small = counts.shape[0] * counts.shape[1] <= MOST_IN_FULL
            self._held = below, counts.toarray() if is_small else counts.tocsc()
        together = self._held[1][:, above]
        numbers = together if isinstance(together, np.ndarray) else together.toarray()
        return (torch.from_numpy(numbers).T / max(1, self._n_tokens)).to(below.device)

    def _by_products(self, above: slice, below: Numbers) -> torch.Tensor:
        together = sum(parents[above].toarray() @ children[below].toarray().T for parents, children in self._parts)
        return torch.from_numpy(together / np.float32(self._n_tokens))


def as_array(tensor: torch.Tensor) -> Numbers:
    """A tensor's numbers, on the CPU."""
    return tensor.detach().cpu().numpy()
