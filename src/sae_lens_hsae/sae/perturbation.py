"""Perturbation: a parent stands in for its children, so now and then they stand in for it (HSAE §3.2).

In the reconstruction of a level, each feature that has children is, with probability r, replaced by the sum of their
contributions. Drawn per feature and training step, shared by the batch. The paper prints r as the probability of
keeping the parent; its prose and its App. F.2 say that of replacing it, which is what is done here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from sae_lens_hsae.forest.levels import NO_PARENT, Levels


class Replacement(NamedTuple):
    """What changes in the reconstruction of one level."""

    features: torch.Tensor  # replaced parents, then all their children, as flat indices; (n,) int64
    signs: torch.Tensor  # −1 for a parent that leaves, +1 for a child that stands in; (n,) float32


def draw_replaced(parents: torch.Tensor, rate: float, seed: int, step: int) -> torch.Tensor:
    """Which features are replaced in this training step, (n_features,) bool: each that has children with probability r.

    On the CPU, as ``parents`` are. The draw depends on nothing but ``seed`` and ``step``, so a resumed run, or another
    process, draws the same.
    """
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + step) & 0x7FFFFFFFFFFFFFFF)
    has_children = torch.zeros(len(parents), dtype=torch.bool)
    has_children[parents[parents != NO_PARENT]] = True
    return has_children & (torch.rand(len(parents), generator=generator) < rate)


def replacements(replaced: torch.Tensor, parents: torch.Tensor, levels: Levels) -> list[Replacement]:
    """Turn a draw (n_features,), on the CPU, into one replacement for every level but the finest, maybe empty."""
    result = []
    for own, below in levels.boundaries:
        leaving = own.start + torch.nonzero(replaced[own]).squeeze(1)
        of_children = parents[below]
        standing_in = below.start + torch.nonzero((of_children != NO_PARENT) & replaced[of_children]).squeeze(1)
        features = torch.cat([leaving, standing_in])
        signs = torch.cat([-torch.ones(len(leaving)), torch.ones(len(standing_in))])
        result.append(Replacement(features, signs))
    return result


def replacement_delta(acts: torch.Tensor, W_dec: torch.Tensor, replacement: Replacement) -> torch.Tensor:
    """What a replacement adds to its level's reconstruction, (batch, d_in): Σ of the children − Σ of replaced parents.

    Takes activations (batch, n_features) and decoder rows of all levels. Only the columns involved, about a share r of
    them, are touched; b_dec is no feature and stays.
    """
    contributions = acts.index_select(1, replacement.features) * replacement.signs.to(acts.dtype)
    return contributions @ W_dec.index_select(0, replacement.features)
