"""Are edges that another training has, too, truer? Two on the same planted trees, with other samples and weights.

Expected beforehand: the edges that both have are true at least 1.5 times as often as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.models import HSAE
from experiments.planted.concept_matching import NO_CONCEPT, Samples, match_features
from experiments.planted.training import new_saes, of_every_seed, train
from experiments.planted.trees import N_SAMPLES, PlantedSetting
from sae_lens_hsae.evaluation import level_saes, shared_edges
from sae_lens_hsae.evaluation.stability import NO_MATCH, match_decoders
from sae_lens_hsae.forest import NO_PARENT, copies_of_parents
from sae_lens_hsae.forest.parents import BREADTH_PENALTY
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

OTHER = 1_000
"""Added to the seed for the samples and the first weights of the other training."""
KINDS = ("found again", "both ends found again, not the edge", "an end not found again", "as many, the most similar")
"""The last are chosen without the other training: as many edges as are found again, those of the highest similarity."""
VERDICTS = ("parent", "ancestor", "itself", "no relation", "stands for nothing")
WRONG = VERDICTS[-2:]


def reproduce_shared(
    setting: PlantedSetting, folder: Path, seeds: range, steps: int, n_samples: int = N_SAMPLES
) -> list[dict[str, Any]]:
    """One row for each of `KINDS`, means over the seeds; ± is half the range of the last two columns' sum.

    Args:
        setting: the planted trees.
        folder: where finished cells are kept.
        seeds: which ones.
        steps: of training.
        n_samples: to match features on.
    """
    found = of_every_seed("shared", edges_judged, setting, folder, seeds, steps, n_samples, other=OTHER, kinds=KINDS)
    rows = []
    for kind in KINDS:
        wrong = [sum(cell[kind][name] for name in WRONG) for cell in found]
        means = {name: fmean(cell[kind][name] for cell in found) for name in ("number", *VERDICTS)}
        rows.append({"edges": kind} | means | {"wrong": fmean(wrong), "±": (max(wrong) - min(wrong)) / 2})
    return rows


def edges_judged(setting: PlantedSetting, seed: int, steps: int, n_samples: int) -> dict[str, Any]:
    """Train two HSAEs on the same trees, and judge the first one's edges; those to copies are left out."""
    trees = setting.plant(seed)
    first, other = (
        train(own, new_saes(own, {HSAE: {}}), steps)[HSAE] for own in (trees, replace(trees, seed=seed + OTHER))
    )
    assert isinstance(first, HierarchicalTrainingSAE)
    assert isinstance(other, HierarchicalTrainingSAE)
    saes, others = list[Any](level_saes(first)), list[Any](level_saes(other))
    forest = first.forest
    again = shared_edges(saes, forest, others, other.forest)
    matches = [match_decoders(own.W_dec, its.W_dec) for own, its in zip(saes, others, strict=True)]
    matched = torch.cat(matches) != NO_MATCH
    is_copy = copies_of_parents(forest, first.W_dec.detach())
    edges = torch.tensor([(above, below) for above, below in forest.edges().tolist() if not is_copy[below]])
    concept_of = match_features(saes, trees.samples(n_samples)).concept_of
    similarity = _similarity(saes, edges, trees.samples(n_samples))
    kinds = dict(zip(KINDS, masks(edges, again, matched, similarity), strict=True))
    return {"rows": {kind: judged(edges[mask], concept_of, trees.true_parents) for kind, mask in kinds.items()}}


def masks(
    edges: torch.Tensor, again: torch.Tensor, matched: torch.Tensor, similarity: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Which of the edges (n, 2) are of each of `KINDS`.

    Args:
        edges: parent and child.
        again: (n_features,) bool: the other training has the child's edge.
        matched: (n_features,) bool: it has the feature.
        similarity: (n,) of the edges.
    """
    found, both = again[edges[:, 1]], matched[edges].all(1)
    most = torch.zeros_like(found)
    most[similarity.argsort(descending=True)[: int(found.sum())]] = True
    return found, ~found & both, ~both, most


def judged(edges: torch.Tensor, concept_of: torch.Tensor, true_parents: torch.Tensor) -> dict[str, float]:
    """The number of edges, and the share of each of `VERDICTS`: what the parent is to the child.

    Args:
        edges: (n, 2) parent and child.
        concept_of: (n_features,) the concept that each feature stands for, −1 for none.
        true_parents: (n_concepts,) −1 for none.
    """
    counts: dict[str, int] = dict.fromkeys(VERDICTS, 0)
    for above, below in concept_of[edges].tolist():
        counts[_verdict(above, below, true_parents)] += 1
    return {"number": float(len(edges))} | {name: n / max(1, len(edges)) for name, n in counts.items()}


@torch.no_grad()
def _similarity(saes: Sequence[Any], edges: torch.Tensor, samples: Samples) -> torch.Tensor:
    """P(parent | child) − 2 P(parent) of each edge, which the parents were chosen by."""
    fires = torch.cat([torch.cat([sae.encode(x) > 0 for sae in saes], dim=1) for x, _ in samples])
    above, below = edges.T
    together = (fires[:, above] & fires[:, below]).double().mean(0)
    frequency = fires.double().mean(0)
    return together / frequency[below].clamp(min=1e-12) - BREADTH_PENALTY * frequency[above]


def _verdict(above: int, below: int, true_parents: torch.Tensor) -> str:
    if NO_CONCEPT in (above, below):
        return "stands for nothing"
    if above == below:
        return "itself"
    if true_parents[below] == above:
        return "parent"
    while below != NO_PARENT:
        below = int(true_parents[below])
        if below == above:
            return "ancestor"
    return "no relation"
