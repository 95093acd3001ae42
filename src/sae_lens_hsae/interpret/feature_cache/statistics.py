"""How often and how strongly features fire, and how often parent and child do so together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sae_lens_hsae.forest import NO_PARENT, FeatureForest

BINS_PER_OCTAVE = 8
LOWEST_OCTAVE = -16
N_BINS = 32 * BINS_PER_OCTAVE


def bin_edges() -> torch.Tensor:
    """(N_BINS + 1,) float64 edges of the logarithmic histogram; what lies outside is in the first or last bin."""
    return torch.exp2(torch.arange(N_BINS + 1, dtype=torch.float64) / BINS_PER_OCTAVE + LOWEST_OCTAVE)


def bin_of(values: torch.Tensor) -> torch.Tensor:
    """Bin of each activation above 0, same shape, int64."""
    bins = ((values.log2() - LOWEST_OCTAVE) * BINS_PER_OCTAVE).floor()
    return bins.clamp(0, N_BINS - 1).long()


def quantiles(histogram: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Activations at given quantiles, from the histogram: (features, bins), (n,) → (features, n) float64.

    Within a bin the logarithm is interpolated; a bin is 9 % wide, so that an answer is off by at most that.
    NaN for a feature that never fired.
    """
    cumulative = histogram.cumsum(1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = at.to(cumulative) * total
    bins = torch.searchsorted(cumulative, target.contiguous()).clamp(max=N_BINS - 1)
    in_bin = histogram.gather(1, bins).double()
    below = cumulative.gather(1, bins) - in_bin
    part = ((target - below) / in_bin.clamp(min=1)).clamp(0, 1)
    values = torch.exp2((bins + part) / BINS_PER_OCTAVE + LOWEST_OCTAVE)
    return values.masked_fill(total == 0, torch.nan)


@dataclass
class Firing:
    """Activations of a chunk, dense and as a list: ``tokens``, ``features``, ``values`` of those above 0."""

    acts: torch.Tensor  # (tokens, features) ≥ 0; ``of_parent`` has the same shape, 0 where there is no parent
    parents: torch.Tensor  # (features,)

    def __post_init__(self) -> None:
        self.of_parent = self.acts[:, self.parents.clamp(min=0)]
        self.of_parent[:, self.parents < 0] = 0
        self.tokens, self.features = self.acts.nonzero(as_tuple=True)
        self.values = self.acts[self.tokens, self.features]


class FiringStatistics:
    """Counts over the tokens seen; which of them are about an edge are indexed by the child."""

    def __init__(self, forest: FeatureForest, device: torch.device) -> None:
        n = forest.n_features
        self.n_tokens = 0
        self._counts = torch.zeros(4, n, dtype=torch.int64, device=device)
        self._total = torch.zeros(n, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        self._maximum = torch.zeros(n, device=device)
        self._histogram = torch.zeros(n, N_BINS, dtype=torch.int32, device=device)

    def add(self, firing: Firing, n_tokens: int) -> None:
        self.n_tokens += n_tokens
        n_firing, n_with_parent, n_any_child, n_with_any_child = self._counts
        features, n = firing.features, len(n_firing)
        n_firing += torch.bincount(features, minlength=n)
        self._total += firing.acts.sum(0).to(self._total)
        self._maximum = torch.maximum(self._maximum, firing.acts.amax(0))
        self._histogram.view(-1).scatter_add_(
            0, features * N_BINS + bin_of(firing.values), torch.ones_like(features, dtype=torch.int32)
        )

        parent = firing.parents[features]
        with_parent = firing.of_parent[firing.tokens, features] > 0
        n_with_parent += torch.bincount(features[with_parent], minlength=n)
        assigned = parent != NO_PARENT
        predicted = torch.zeros_like(firing.acts, dtype=torch.bool)
        predicted[firing.tokens[assigned], parent[assigned]] = True
        n_any_child += predicted.sum(0)
        n_with_any_child += (predicted & (firing.acts > 0)).sum(0)

    def result(self) -> dict[str, torch.Tensor]:
        n_firing, n_with_parent, n_any_child, n_with_any_child = self._counts.cpu().unbind()
        return {
            "n_firing": n_firing,
            "n_with_parent": n_with_parent,
            "n_any_child": n_any_child,
            "n_with_any_child": n_with_any_child,
            "mean_activation": (self._total.cpu() / n_firing.clamp(min=1)).float(),
            "max_activation": self._maximum.cpu(),
            "histogram": self._histogram.cpu(),
        }
