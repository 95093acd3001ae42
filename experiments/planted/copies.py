"""Which edges join a concept to itself: what the cosine of decoder directions says of it, against the planted truth."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.models import HSAE
from experiments.planted.concept_matching import NO_CONCEPT, match_features
from experiments.planted.training import new_saes, of_every_seed, train
from experiments.planted.trees import N_SAMPLES, PlantedSetting
from sae_lens_hsae.evaluation.stacks import level_saes
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.levels import NO_PARENT
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

COSINES = (0.7, 0.75, 0.8, 0.85, 0.9)
MEASURES = ("identities", "marked", "precision", "recall", "identities left")


def reproduce_copies(
    setting: PlantedSetting, folder: Path, seeds: range, steps: int, n_samples: int = N_SAMPLES
) -> list[dict[str, Any]]:
    """One row per cosine above which a child would be called a copy, means over the seeds.

    Args:
        setting: the planted trees.
        folder: where finished cells are kept.
        seeds: which ones.
        steps: of training.
        n_samples: to match features on.
    """
    found = of_every_seed("copies", copies_found, setting, folder, seeds, steps, n_samples, cosines=COSINES)
    return [
        {"cosine": cosine} | {measure: fmean(rows[i][measure] for rows in found) for measure in MEASURES}
        for i, cosine in enumerate(COSINES)
    ]


def copies_found(setting: PlantedSetting, seed: int, steps: int, n_samples: int) -> dict[str, Any]:
    """Train HSAE on one seed, and score each of `COSINES`."""
    trees = setting.plant(seed)
    sae = train(trees, new_saes(trees, {HSAE: {}}), steps)[HSAE]
    assert isinstance(sae, HierarchicalTrainingSAE)
    matches = match_features(level_saes(sae), trees.samples(n_samples))
    return {"rows": scored(sae.forest, sae.W_dec.detach(), matches.concept_of)}


def scored(forest: FeatureForest, decoder: torch.Tensor, concept_of: torch.Tensor) -> list[dict[str, float]]:
    """One row for each of `COSINES`, over the edges whose ends both stand for a concept.

    Args:
        forest: who is whose parent.
        decoder: (n_features, d_in) unit rows.
        concept_of: (n_features,) the concept that each feature stands for, −1 for none.

    Returns:
        Shares of these edges: ``identities``, which join a concept to itself, and ``marked``, above the cosine; of the
        marked the identities (``precision``), of the identities the marked (``recall``), and the share of identities
        among the edges that are not marked (``identities left``).
    """
    parents = forest.parents
    child = (parents != NO_PARENT).nonzero().flatten()
    parent = parents[child]
    both = (concept_of[child] != NO_CONCEPT) & (concept_of[parent] != NO_CONCEPT)
    child, parent = child[both], parent[both]
    same, cosine = concept_of[child] == concept_of[parent], (decoder[child] * decoder[parent]).sum(1)
    rows = []
    for least in COSINES:
        marked = cosine > least
        hits, n = float((marked & same).sum()), max(1, len(child))
        values = (
            float(same.sum()) / n,
            float(marked.sum()) / n,
            hits / max(1.0, float(marked.sum())),
            hits / max(1.0, float(same.sum())),
            float((~marked & same).sum()) / max(1.0, float((~marked).sum())),
        )
        rows.append(dict(zip(MEASURES, values, strict=True)))
    return rows
