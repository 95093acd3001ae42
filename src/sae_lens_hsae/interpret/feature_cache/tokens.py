"""The tokens a feature is strongest on, from a stream, with a bounded number of candidates per feature."""

from __future__ import annotations

import torch

from sae_lens_hsae.interpret.feature_cache.format import DashboardSettings
from sae_lens_hsae.interpret.feature_cache.statistics import Firing

TOKEN_BITS = 32
MIN_PENDING = 2**20


class TokenMeans:
    """Mean activation of every feature over all occurrences of a token.

    A table of vocabulary × features does not fit in memory. Kept are the sums of ``n_candidate_tokens`` tokens per
    feature, those of highest mean, shrunk towards 0 for rare tokens so that one lucky occurrence drives out nobody.
    While no feature fires on more tokens than that, the result is exact; beyond, a token that was driven out and comes
    back has lost its earlier occurrences.
    """

    def __init__(self, n_features: int, settings: DashboardSettings, device: torch.device) -> None:
        self._settings = settings
        self._n_features = n_features
        self._count = torch.zeros(0, dtype=torch.int64, device=device)
        self._keys = torch.zeros(0, dtype=torch.int64, device=device)
        self._sums = torch.zeros(0, device=device)
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._n_pending = 0
        # As many new entries as there are kept ones: sorting them together costs each entry a bounded share.
        self._max_pending = max(MIN_PENDING, n_features * settings.n_candidate_tokens)

    def add(self, firing: Firing, token_ids: torch.Tensor, kept: torch.Tensor) -> None:
        """Count a chunk: ``token_ids`` (tokens,) and which of them count, ``kept`` (tokens,) bool."""
        new = torch.bincount(token_ids[kept], minlength=len(self._count))
        new[: len(self._count)] += self._count
        self._count = new
        keys = (firing.features << TOKEN_BITS) | token_ids[firing.tokens]
        self._pending.append(_summed(keys, firing.values))
        self._n_pending += len(self._pending[-1][0])
        if self._n_pending > self._max_pending:
            self._compact()

    def result(self) -> dict[str, torch.Tensor]:
        """``strongest_tokens`` (features, n) int32, −1 for none."""
        self._compact()
        features, tokens = self._split()
        count = self._count[tokens]
        means = self._sums / count
        frequent = count >= self._settings.min_token_count
        features, tokens, means = features[frequent], tokens[frequent], means[frequent]
        order, rank = _ranked(features, means, self._settings.n_strongest_tokens)
        shape = (self._n_features, self._settings.n_strongest_tokens)
        strongest = torch.full(shape, -1, dtype=torch.int32, device=tokens.device)
        strongest[features[order], rank] = tokens[order].int()
        return {"strongest_tokens": strongest.cpu()}

    def _compact(self) -> None:
        """Take the pending sums into the table."""
        keys = torch.cat([self._keys, *(keys for keys, _ in self._pending)])
        sums = torch.cat([self._sums, *(sums for _, sums in self._pending)])
        self._keys, self._sums = _summed(keys, sums)
        self._pending, self._n_pending = [], 0
        features, tokens = self._split()
        shrunk = self._sums / (self._count[tokens] + self._settings.min_token_count)
        order, _ = _ranked(features, shrunk, self._settings.n_candidate_tokens)
        self._keys, self._sums = self._keys[order], self._sums[order]

    def _split(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._keys >> TOKEN_BITS, self._keys & (2**TOKEN_BITS - 1)


def _summed(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each key once, ascending, with the sum of its values."""
    unique, inverse = keys.unique(return_inverse=True)
    return unique, torch.zeros(len(unique), device=values.device).index_add_(0, inverse, values)


def _ranked(features: torch.Tensor, scores: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of each feature's ``n`` entries of highest score, and their ranks from 0; earlier entries win ties."""
    order = scores.argsort(descending=True, stable=True)
    order = order[features[order].argsort(stable=True)]
    grouped = features[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(grouped, grouped)
    return order[rank < n], rank[rank < n]
