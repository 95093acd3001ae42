"""Are edges that another training has, too, truer? Two on the same planted trees, with other samples and weights.

Expected beforehand: of the edges of either kind, those that both have are true at least half as often again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.kept_names import named_by
from experiments.models import HSAE
from experiments.planted.concept_matching import NO_CONCEPT, match_features
from experiments.planted.training import new_saes, settings_of, train
from experiments.planted.trees import N_SAMPLES, PlantedSetting
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.evaluation import level_saes, shared_edges
from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

OTHER = 1_000
"""Added to the seed for the samples and the first weights of the other training."""
KINDS = {True: "in both", False: "in one"}
VERDICTS = ("parent", "ancestor", "itself", "no relation", "stands for nothing")


def reproduce_shared(
    setting: PlantedSetting, folder: Path, seeds: range, steps: int, n_samples: int = N_SAMPLES
) -> list[dict[str, Any]]:
    """One row for the edges that both trainings have and one for the others, means over the seeds.

    Args:
        setting: the planted trees.
        folder: where finished cells are kept.
        seeds: which ones.
        steps: of training.
        n_samples: to match features on.
    """
    name = f"shared-{setting.name}-v{setting.version}-{steps}steps-{n_samples}samples"
    settings = {**settings_of(setting, {HSAE: {}}), "other": OTHER}
    cells = [
        Cell(named_by(f"{name}-seed{seed}", settings), edges_judged, (setting, seed, steps, n_samples))
        for seed in seeds
    ]
    found = [cell["rows"] for cell in finish_cells(cells, folder, f"Edges of two trainings, {setting.name}")]
    return [
        {"edges": kind} | {name: fmean(rows[i][name] for rows in found) for name in found[0][i]}
        for i, kind in enumerate(KINDS.values())
    ]


def edges_judged(setting: PlantedSetting, seed: int, steps: int, n_samples: int) -> dict[str, Any]:
    """Train two HSAEs on the same trees, and judge the first one's edges."""
    trees = setting.plant(seed)
    first, other = (
        train(own, new_saes(own, {HSAE: {}}), steps)[HSAE] for own in (trees, replace(trees, seed=seed + OTHER))
    )
    assert isinstance(first, HierarchicalTrainingSAE)
    assert isinstance(other, HierarchicalTrainingSAE)
    is_shared = shared_edges(level_saes(first), first.forest, level_saes(other), other.forest)
    concept_of = match_features(level_saes(first), trees.samples(n_samples)).concept_of
    return {"rows": judged(first.forest, is_shared, concept_of, trees.true_parents)}


def judged(
    forest: FeatureForest, is_shared: torch.Tensor, concept_of: torch.Tensor, true_parents: torch.Tensor
) -> list[dict[str, float]]:
    """For each of `KINDS` the number of edges, and the share of each of `VERDICTS`: what the parent is to the child.

    Args:
        forest: who is whose parent.
        is_shared: (n_features,) bool, of the children.
        concept_of: (n_features,) the concept that each feature stands for, −1 for none.
        true_parents: (n_concepts,) −1 for none.
    """
    counts: dict[bool, dict[str, int]] = {kind: dict.fromkeys(VERDICTS, 0) for kind in KINDS}
    for parent, child in forest.edges().tolist():
        counts[bool(is_shared[child])][_verdict(int(concept_of[parent]), int(concept_of[child]), true_parents)] += 1
    return [
        {"number": float(sum(own.values()))} | {name: n / max(1, sum(own.values())) for name, n in own.items()}
        for own in counts.values()
    ]


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
