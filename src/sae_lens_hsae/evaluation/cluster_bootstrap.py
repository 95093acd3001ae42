"""Means over rows that come in clusters, and their intervals by resampling whole clusters.

The pairs of one parent are no independent draws, so resampling single pairs would give intervals that are too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import binomtest

MAX_WEIGHTS_AT_ONCE = 2**22
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; NaN where there is nothing to take a mean of, or no second cluster."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class ResampledMeans:
    """Means of several columns and the same means of resampled clusters."""

    means: torch.Tensor  # (n_columns,) float64
    resampled: torch.Tensor  # (n_resamples, n_columns) float64
    n_clusters: torch.Tensor  # (n_columns,) clusters that hold a number

    def estimate(self, column: int, is_share: bool = False) -> Estimate:
        """The mean of a column.

        A share of exactly 0 or 1 does not vary under resampling; it gets Wilson's interval for the number of clusters.
        """
        value, n = self.means[column].item(), int(self.n_clusters[column])
        if is_share and n >= 2 and value in (0.0, 1.0):
            return Estimate(value, *binomtest(n * int(value), n).proportion_ci(LEVEL, method="wilson"))
        return self._estimate(value, self.resampled[:, column], n)

    def difference(self, column: int, other: int) -> Estimate:
        """One column's mean minus another's, from the same resamples."""
        resampled = self.resampled[:, column] - self.resampled[:, other]
        n = int(min(self.n_clusters[column], self.n_clusters[other]))
        return self._estimate((self.means[column] - self.means[other]).item(), resampled, n)

    def relative_difference(self, column: int, other: int) -> Estimate:
        """One column's mean over another's, minus 1, from the same resamples; NaN where the other's is not above 0."""
        if not self.means[other] > 0:
            return Estimate(math.nan, math.nan, math.nan)
        resampled = self.resampled[:, column] / self.resampled[:, other] - 1
        n = int(min(self.n_clusters[column], self.n_clusters[other]))
        return self._estimate((self.means[column] / self.means[other] - 1).item(), resampled, n)

    @staticmethod
    def _estimate(value: float, resampled: torch.Tensor, n_clusters: int) -> Estimate:
        if n_clusters < 2:
            return Estimate(value, math.nan, math.nan)
        tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
        # A resample may miss every cluster that holds a number.
        low, high = torch.nanquantile(resampled, tails).tolist()
        return Estimate(value, low, high)


def resampled_means(
    values: torch.Tensor, cluster: torch.Tensor, n_resamples: int, generator: torch.Generator
) -> ResampledMeans:
    """Mean of every column, and of ``n_resamples`` resamples of the clusters with replacement.

    Takes values (n_rows, n_columns), NaN left out, and integers (n_rows,) that say which rows belong together.
    """
    values = values.double()
    names, cluster = cluster.unique(return_inverse=True)
    n_clusters, n_columns = len(names), values.shape[1]
    zeros = torch.zeros(n_clusters, n_columns, dtype=torch.float64)
    sums = zeros.index_add(0, cluster, values.nan_to_num(0.0))
    counts = zeros.index_add(0, cluster, (~values.isnan()).double())

    resampled = [torch.zeros(0, n_columns, dtype=torch.float64)]
    at_once = max(1, MAX_WEIGHTS_AT_ONCE // max(1, n_clusters))
    for done in range(0, n_resamples if n_clusters else 0, at_once):
        n = min(at_once, n_resamples - done)
        drawn = torch.randint(n_clusters, (n, n_clusters), generator=generator)
        ones = torch.ones(1, dtype=torch.float64).expand(n, n_clusters)
        weights = torch.zeros(n, n_clusters, dtype=torch.float64).scatter_add_(1, drawn, ones)
        resampled.append(weights @ sums / (weights @ counts))
    return ResampledMeans(sums.sum(0) / counts.sum(0), torch.cat(resampled), (counts > 0).sum(0))
