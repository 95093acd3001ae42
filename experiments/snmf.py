"""Semi-nonnegative matrix factorisation (arXiv 2506.10920) as a stack of levels with a forest: a rival without an SAE.

A ≈ Y Z with Y ≥ 0: each row of A, an activation, is a sum of few rows of Z, its features. The features of the finest
level are factorised in turn, Z_l ≈ Y_l Z_(l-1), which makes coarser ones of them; a feature's parent is the coarser one
of which it holds most. The paper factorises what neurons do, and keeps 1 % of each feature's neurons; a residual stream
has no neurons, so what is kept here is the largest of an activation's coefficients, as many as the level's L0.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.levels import Levels

SNMF = "SNMF"
FACTORISED = 10_240
"""Activations that are factorised; all are held at once."""
STEPS = 50
"""Rounds of the updates."""
CODE_STEPS = 30
"""Steps of the gradient that find an activation's coefficients."""
RIDGE = 1e-4
"""λ, in mean squared lengths of Y's columns."""
SPREAD = 0.2
"""What the first coefficients have above 0, where a cluster gives none (Ding, Li and Jordan 2010)."""
SNMF_SETTINGS = (FACTORISED, STEPS, CODE_STEPS, RIDGE, SPREAD)


class FactorLevel:
    """A level of features without an encoder: coefficients are found by least squares, and the small ones dropped.

    Attributes:
        W_dec: (k, d_in) features of norm 1.
        mean: (d_in,) of the activations, which the features are summed on.
        threshold: coefficients up to this are 0.
    """

    def __init__(self, features: torch.Tensor, mean: torch.Tensor, threshold: float = 0.0) -> None:
        self.W_dec, self.mean, self.threshold = torch.nn.functional.normalize(features, dim=1), mean, threshold
        self.cfg = SimpleNamespace(d_in=features.shape[1], d_sae=len(features))
        self.device = features.device

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, k) of activations (batch, d_in)."""
        codes = coefficients(x - self.mean, self.W_dec)
        return torch.where(codes > self.threshold, codes, 0)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """(batch, d_in)."""
        return feature_acts @ self.W_dec + self.mean


@torch.no_grad()
def factor_levels(
    x: torch.Tensor, widths: Sequence[int], target_l0: Sequence[float], seed: int
) -> tuple[list[FactorLevel], FeatureForest]:
    """Factorise activations from fine to coarse.

    Args:
        x: (n, d_in).
        widths: of the levels, coarse to fine.
        target_l0: of each level; sets its threshold.
        seed: of the first clusters.
    """
    mean = x.mean(0)
    levels, parents = list[FactorLevel](), list[torch.Tensor]()
    rows, offsets = x - mean, Levels(tuple(widths)).offsets
    for level in reversed(range(len(widths))):
        y, z = factorised(rows, widths[level], seed)
        if levels:
            parents.insert(0, offsets[level] + (y * z.norm(dim=1)).argmax(1))
        levels.insert(0, found := FactorLevel(z, mean))
        codes = found.encode(x)
        n_kept = min(round(target_l0[level] * len(x)), int((codes > 0).sum()))
        found.threshold = codes.flatten().kthvalue(codes.numel() - n_kept).values.item()
        rows = found.W_dec
    return levels, FeatureForest(torch.cat([torch.full((widths[0],), -1), *parents]), widths)


def factorised(a: torch.Tensor, k: int, seed: int = 0, steps: int = STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """Y (n, k) ≥ 0 and Z (k, d) with A ≈ Y Z, from clusters on, by Ding, Li and Jordan's updates (2010, eq. 10 and 11).

    Args:
        a: (n, d).
        k: features.
        seed: of the clusters.
        steps: how often both are updated.
    """
    from sklearn.cluster import MiniBatchKMeans

    kmeans: Any = MiniBatchKMeans  # its n_init is typed as a string
    clusters = kmeans(k, n_init=1, random_state=seed).fit_predict(a.cpu().numpy())
    y = torch.nn.functional.one_hot(torch.from_numpy(clusters).long(), k).to(a) + SPREAD
    for _ in range(steps):
        y = updated(a, y, features_for(a, y))
    return y, features_for(a, y)


def features_for(a: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Z = (YᵀY + λI)⁻¹ YᵀA, (k, d)."""
    overlap = y.T @ y
    return torch.linalg.solve(overlap + RIDGE * overlap.trace() / len(overlap) * torch.eye(len(overlap)).to(a), y.T @ a)


def updated(a: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Y ∘ √(([AZᵀ]⁺ + Y[ZZᵀ]⁻) / ([AZᵀ]⁻ + Y[ZZᵀ]⁺)), (n, k); the error does not rise."""
    towards, overlap = a @ z.T, z @ z.T
    rise = towards.clamp(min=0) - y @ overlap.clamp(max=0)
    fall = y @ overlap.clamp(min=0) - towards.clamp(max=0)
    return y * (rise / fall.clamp(min=1e-12)).sqrt()


def coefficients(x: torch.Tensor, z: torch.Tensor, steps: int = CODE_STEPS) -> torch.Tensor:
    """(n, k) argmin ‖x − y Z‖² over y ≥ 0, for x (n, d) and Z (k, d), by Nesterov's accelerated gradient."""
    rate = 1 / torch.linalg.matrix_norm(z, 2).square()
    y = ahead = x.new_zeros(len(x), len(z))
    for step in range(steps):
        before, y = y, (ahead - rate * (ahead @ z - x) @ z.T).clamp(min=0)
        ahead = y + step / (step + 3) * (y - before)
    return y
