"""Activations with a planted forest, and the levels that read them as trained ones do.

What a step costs depends on how many pre-activations are above their threshold θ, and how many more are within half
a bandwidth ε of it. To have both as in training at every size, without an hour of training first, the answer is
planted: activations are sparse sums of the leaves of a forest of directions, and every level begins with the directions
of its own depth as decoder rows and as encoder columns. θ of a level is then the quantile of its pre-activations at
which L0 is the target. All contestants begin with these weights, so that L0 is the same for all of them, and λ is held
at θ², where a feature at its threshold breaks even. The learning rate is too small to move any of it while the clock
runs; how long Adam takes does not depend on it.

Each result states the L0 of every level while it was measured, and the entries per active feature: pre-activations
above θ − ε/2 for each one above θ. In levels trained on all-MiniLM-L6-v2 (`hsae demo`) that is 1.5 to 2.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from benchmarks.plan import Size

N_BATCHES = 4
COSINE_TO_PARENT = 0.6
NOISE = 0.3
"""Norm of what no feature accounts for, as a share of the activation's norm before it was added."""


class Planted(NamedTuple):
    """Activations and the levels that fit them.

    Attributes:
        directions: (n_features, d_in), unit rows, coarse to fine.
        thresholds: θ of each level, (L,).
        batches: activations, each (batch, d_in), of mean norm √d_in.
    """

    directions: torch.Tensor
    thresholds: torch.Tensor
    batches: list[torch.Tensor]


def plant(size: Size, device: str, seed: int = 0) -> Planted:
    """Plant a forest of directions and draw activations from it."""
    generator = torch.Generator().manual_seed(seed)
    directions = _forest_of_directions(size.widths, size.d_in, generator)
    leaves = directions[-size.widths[-1] :]
    batches = [_activations(leaves, size.batch, size.l0, generator).to(device) for _ in range(N_BATCHES)]
    directions = directions.to(device)
    return Planted(directions, thresholds_at(directions, size, batches[0]), batches)


def activations(size: Size, seed: int = 0) -> Iterator[torch.Tensor]:
    """Ever new batches of such activations."""
    generator = torch.Generator().manual_seed(seed)
    leaves = _forest_of_directions(size.widths, size.d_in, generator)[-size.widths[-1] :]
    while True:
        yield _activations(leaves, size.batch, size.l0, generator)


def _forest_of_directions(widths: tuple[int, ...], d_in: int, generator: torch.Generator) -> torch.Tensor:
    levels = [normalize(torch.randn(widths[0], d_in, generator=generator), dim=1)]
    for n_parents, n_children in pairwise(widths):
        own = normalize(torch.randn(n_children, d_in, generator=generator), dim=1)
        of_parent = levels[-1][torch.arange(n_children) % n_parents]
        levels.append(normalize(COSINE_TO_PARENT * of_parent + (1 - COSINE_TO_PARENT**2) ** 0.5 * own, dim=1))
    return torch.cat(levels)


def _activations(leaves: torch.Tensor, batch: int, n_active: int, generator: torch.Generator) -> torch.Tensor:
    """(batch, d_in): sums of leaves, the first of which are the more frequent ones, and noise."""
    frequency = 1 / torch.arange(1, len(leaves) + 1).float().sqrt()
    active = torch.multinomial(frequency.expand(batch, -1), n_active, generator=generator)
    strength = 1 + torch.rand(batch, n_active, generator=generator)
    x = torch.nn.functional.embedding_bag(active, leaves, per_sample_weights=strength, mode="sum")
    noise = normalize(torch.randn(x.shape, generator=generator), dim=1)
    x = x + NOISE * x.norm(dim=1, keepdim=True) * noise
    return x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean())


@torch.no_grad()
def thresholds_at(directions: torch.Tensor, size: Size, x: torch.Tensor) -> torch.Tensor:
    """θ of each level, (L,), at which its L0 on ``x`` (batch, d_in) is ``size.l0``."""
    thresholds = []
    for rows in directions.split(size.widths):
        pre = (x @ rows.T).flatten()
        thresholds.append(pre.topk(size.l0 * len(x) + 1).values[-1].clamp(min=0))
    return torch.stack(thresholds)
