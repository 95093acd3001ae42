"""Would another measure of firing together make truer parents? Each with its own best bar, on the same trained levels.

Expected beforehand: one that counts how strongly features fire, and not only whether, is truer by 0.02 of F1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.models import HSAE
from experiments.planted.concept_matching import match_features
from experiments.planted.training import COUNTED_ON, new_saes, of_every_seed, train
from experiments.planted.tree_recovery import score_recovery
from experiments.planted.trees import N_SAMPLES, PlantedSetting
from sae_lens_hsae.evaluation.stacks import level_saes
from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.forest.parents import BREADTH_PENALTY, lower_end
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of all children that may have a parent: those that are most similar to one do."""


def reproduce_rules(
    setting: PlantedSetting, folder: Path, seeds: range, steps: int, n_samples: int = N_SAMPLES
) -> list[dict[str, Any]]:
    """One row per similarity, with the share of children with a parent that is best over the seeds, means over these.

    Args:
        setting: the planted trees.
        folder: where finished cells are kept.
        seeds: which ones.
        steps: of training.
        n_samples: to match features on.
    """
    found = of_every_seed(
        "rules", rules_scored, setting, folder, seeds, steps, n_samples, shares=SHARES, counted_on=COUNTED_ON
    )
    rows = []
    for similarity in found[0]:
        means = [
            {"share": share}
            | {name: fmean(cell[similarity][i][name] for cell in found) for name in found[0][similarity][0]}
            for i, share in enumerate(SHARES)
        ]
        rows.append({"similarity": similarity} | max(means, key=lambda row: row["F1"]))
    return rows


def rules_scored(setting: PlantedSetting, seed: int, steps: int, n_samples: int) -> dict[str, Any]:
    """Train HSAE on one seed; for each similarity the scores of each of `SHARES`."""
    trees = setting.plant(seed)
    sae = train(trees, new_saes(trees, {HSAE: {}}), steps)[HSAE]
    assert isinstance(sae, HierarchicalTrainingSAE)
    saes: list[Any] = list(level_saes(sae))
    matches = match_features(saes, trees.samples(n_samples))
    x = torch.cat(list(islice(trees.training_batches(), COUNTED_ON)))
    with torch.no_grad():
        acts = [torch.cat([level.encode(part) for part in x.split(4096)]) for level in saes]
        rows = [torch.nn.functional.normalize(level.W_dec, dim=1) for level in saes]
    of_boundary = [similarities(acts[i], acts[i + 1], rows[i] @ rows[i + 1].T) for i in range(len(saes) - 1)]
    scored: dict[str, list[dict[str, float]]] = {}
    for name in of_boundary[0]:
        chosen = [boundary[name].max(0) for boundary in of_boundary]
        scored[name] = []
        for share in SHARES:
            recovery = score_recovery(_forest(chosen, share, sae.forest), matches, trees.true_parents)
            scored[name].append({"F1": recovery.direct.f1, "ancestors' precision": recovery.ancestors.precision})
    return {"rows": scored}


def similarities(parents: torch.Tensor, children: torch.Tensor, cosine: torch.Tensor) -> dict[str, torch.Tensor]:
    """(n_parents, n_children) each, −inf for pairs that never fire together or whose parent fires less than the child.

    Args:
        parents: (tokens, n_parents) activations.
        children: (tokens, n_children) activations.
        cosine: (n_parents, n_children), of decoder rows.
    """
    n, above, below = len(parents), (parents > 0).to(parents.dtype), (children > 0).to(parents.dtype)
    p, c = above.mean(0)[:, None], below.mean(0)[None]
    together = above.T @ below / n
    given_child = together / c.clamp(min=1 / n)
    weighted = above.T @ children / children.sum(0).clamp(min=1e-9)
    phi = (together - p * c) / (p * (1 - p) * c * (1 - c)).sqrt().clamp(min=1e-9)
    x, y = parents - parents.mean(0), children - children.mean(0)
    correlation = x.T @ y / (x.norm(dim=0)[:, None] * y.norm(dim=0)).clamp(min=1e-9)
    implied = given_child - BREADTH_PENALTY * p
    surely = lower_end(given_child, (c * n).clamp(min=1)) - BREADTH_PENALTY * p
    found = {
        "the default: P(parent | child)'s lower end − 2 P(parent)": surely,
        "P(parent | child) − 2 P(parent)": implied,
        "the same, tokens weighted by the child's activation": weighted - BREADTH_PENALTY * p,
        "φ": phi,
        "correlation of activations": correlation,
        "P(parent | child) · log lift": given_child * (given_child / p.clamp(min=1 / n)).clamp(min=1e-9).log(),
        "P(parent | child) − 2 P(parent) + ½ decoder cosine": implied + cosine / 2,
        "decoder cosine": cosine,
    }
    return {name: each.masked_fill((together == 0) | (p < c), -torch.inf) for name, each in found.items()}


def _forest(chosen: Sequence[Any], share: float, like: FeatureForest) -> FeatureForest:
    """Of each boundary's best parents those above the bar that leaves ``share`` of all children one."""
    best = torch.cat([values for values, _ in chosen])
    possible = best[best.isfinite()]
    bar = possible.quantile(1 - share)
    parents = torch.full((len(like),), NO_PARENT)
    for (values, index), (above, below) in zip(chosen, like.levels.boundaries, strict=True):
        parents[below] = torch.where(values >= bar, index + above.start, NO_PARENT)
    return FeatureForest(parents, like.level_widths)
