"""The hierarchy score of Tree SAE (arXiv 2605.07922): do a parent and its child both point to where the child fires?

For each edge a linear probe learns from activations when the child fires. The edge counts if the decoder rows of both,
parent and child, are among the five of their two levels that are closest to the probe's direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from sae_lens_hsae.evaluation.outliers import SEEN_FIRST, usual
from sae_lens_hsae.forest import FeatureForest, copies_of_parents

CLOSEST = 5
MOST_CHILDREN = 5
"""Children of one parent that are probed, drawn at random."""
FEWEST_FIRINGS = 100
"""A child that fires on fewer activations is left out."""
EPOCHS, BATCH_SIZE, PROBE_LEARNING_RATE = 50, 4096, 1e-2


def probe_score(saes: Sequence[Any], forest: FeatureForest, x: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """Share of edges that count, with parents in the more frequent half of their level's features.

    The paper draws such parents at random; here each is taken once. Outlying activations are left out.

    Args:
        saes: one per level, coarse to fine.
        forest: their forest.
        x: (n, d_in) activations.
        seed: of the children drawn, of the probes' batches, and of the shuffle.

    Returns:
        The score of all edges, of those that are no copies, of the same children under other parents, and how many
        edges were probed. NaN where there is none.
    """
    generator = torch.Generator().manual_seed(seed)
    x = x[usual(x[:SEEN_FIRST]).holds(x)]
    fires = [torch.cat([sae.encode(part) != 0 for part in x.split(BATCH_SIZE)]) for sae in saes]
    decoder = torch.nn.functional.normalize(torch.cat([sae.W_dec.detach() for sae in saes]), dim=1)
    is_copy = copies_of_parents(forest, decoder)
    counted, counted_if_shuffled, copied = [], [], []
    for level in range(1, len(saes)):
        above, below = forest.levels.slices[level - 1], forest.levels.slices[level]
        edges = _probed_edges(forest, level, [own.sum(0) for own in fires], generator)
        if len(edges) == 0:
            continue
        parent, child = edges.T
        probes = _probes(x, fires[level][:, child - below.start], generator)
        cosines = torch.nn.functional.normalize(probes, dim=1) @ decoder[above.start : below.stop].T
        closest = torch.zeros_like(cosines, dtype=torch.bool)
        closest.scatter_(1, cosines.topk(min(CLOSEST, cosines.shape[1]), dim=1).indices, True)
        rows = torch.arange(len(edges))
        of_child = closest[rows, child - above.start]
        another = parent[torch.randperm(len(parent), generator=generator)]
        counted.append(of_child & closest[rows, parent - above.start])
        counted_if_shuffled.append((of_child & closest[rows, another - above.start])[another != parent])
        copied.append(is_copy[child])
    if not counted:
        return {"score": math.nan, "without copies": math.nan, "shuffled parents": math.nan, "edges": 0.0}
    score, copies = torch.cat(counted).double(), torch.cat(copied)
    return {
        "score": score.mean().item(),
        "without copies": score[~copies].mean().item(),
        "shuffled parents": torch.cat(counted_if_shuffled).double().mean().item(),
        "edges": float(len(score)),
    }


def _probed_edges(
    forest: FeatureForest, level: int, firings: Sequence[torch.Tensor], generator: torch.Generator
) -> torch.Tensor:
    """(n, 2) parents of the level above and their children on ``level``, as features of the forest."""
    above, below = forest.levels.slices[level - 1], forest.levels.slices[level]
    frequent = firings[level - 1] >= firings[level - 1].float().median()
    edges = []
    for parent in range(above.start, above.stop):
        children = [c for c in forest.children(parent) if firings[level][c - below.start] >= FEWEST_FIRINGS]
        if frequent[parent - above.start]:
            drawn = torch.randperm(len(children), generator=generator)[:MOST_CHILDREN]
            edges += [(parent, children[i]) for i in drawn]
    return torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)


def _probes(x: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(n_targets, d_in) directions of logistic regressions of each column of targets (n, n_targets) on x (n, d_in)."""
    probe = torch.nn.Linear(x.shape[1], targets.shape[1])
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    optimizer = torch.optim.Adam(probe.parameters(), lr=PROBE_LEARNING_RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH_SIZE):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(probe(x[rows]), targets[rows].float())
            optimizer.zero_grad()
            (loss * targets.shape[1]).backward()  # each probe's own mean, so that their number does not matter
            optimizer.step()
    return probe.weight.detach()
