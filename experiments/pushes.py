"""Coarse against fine pushes of Gemma 3 270M: what the same length along a feature and its ancestors changes."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.gemma_forests import gemma_forest
from experiments.gemma_stream import GemmaActivations, gemma_store, typical_distance
from experiments.paper_tables import Size
from sae_lens_hsae.forest import FeatureForest, copies_of_parents
from sae_lens_hsae.interpret.steering import add, effect_of
from sae_lens_hsae.interpret.steering.effects import Effect
from sae_lens_hsae.text.hook_point import run_and_keep

N_TARGETS = 24
PROMPTS = 2
LEAST_ON = 3
"""Tokens on which a target fires."""
LENGTH = 0.5
"""Of a push, in median distances of the activations from their centre."""
PUSHED = ("itself", "its parent", "its parent's parent", "its root")
ANOTHER = "another finest feature"


def reproduce_pushes(activations: GemmaActivations, folder: Path, size: Size, layer: int) -> list[dict[str, Any]]:
    """One row for each that is pushed, means over the targets: finest features with three ancestors and no copy.

    Args:
        activations: what the forest is trained on.
        folder: where it is kept.
        size: of its training; one seed.
        layer: after which block.
    """
    sae, x = gemma_forest(activations, folder, size, layer)
    length = LENGTH * typical_distance(x)
    store = gemma_store(activations.text, layer, from_the_end=True)
    tokens = store.get_batch_tokens()[:PROMPTS]
    hook = str(sae.cfg.metadata.hook_name)
    with torch.no_grad():
        _, kept = run_and_keep(store.model, tokens, [hook])
        fires = (sae.encode(kept[hook]) != 0).flatten(0, 1).sum(0)
    forest = sae.forest
    found: dict[str, list[Effect]] = {name: [] for name in (*PUSHED, ANOTHER)}
    for target, other in targets(forest, copies_of_parents(forest, sae.W_dec), fires):
        pushed = [*reversed(forest.path(target)), other]
        for name, feature in zip(found, pushed, strict=True):
            found[name].append(effect_of(store.model, sae, [add(feature, length)], tokens, target))
    return [row(name, effects) for name, effects in found.items()]


def targets(forest: FeatureForest, is_copy: torch.Tensor, fires: torch.Tensor) -> list[tuple[int, int]]:
    """Finest features to push, each with another one of the level that is not of its tree; drawn by a fixed seed.

    Args:
        is_copy: (n_features,) whether a feature is a copy of its parent.
        fires: (n_features,) tokens on which each is active.
    """
    draw = random.Random(0)
    often = [feature for feature in _finest(forest) if fires[feature] >= LEAST_ON]
    clear = [
        feature
        for feature in often
        if len(forest.path(feature)) == len(PUSHED) and not is_copy[forest.path(feature)].any()
    ]
    chosen = draw.sample(clear, min(N_TARGETS, len(clear)))
    root = {feature: forest.path(feature)[0] for feature in often}
    return [(each, draw.choice([other for other in often if root[other] != root[each]])) for each in chosen]


def _finest(forest: FeatureForest) -> range:
    own = forest.levels[-1]
    return range(own.start, own.stop)


def row(name: str, effects: list[Effect]) -> dict[str, Any]:
    """Means over the targets; how many times as large the perplexity becomes is the exponential of the mean rise."""

    def mean(measure: str) -> float:
        return fmean(value for value in (getattr(each, measure) for each in effects) if not math.isnan(value))

    return {
        "pushed": name,
        "targets": len(effects),
        "logits change, on target": mean("change_on"),
        "off target": mean("change_off"),
        "KL, on target": mean("kl_on"),
        "KL, off target": mean("kl_off"),
        "perplexity, times, on target": math.exp(mean("loss_on")),
        "perplexity, times, off target": math.exp(mean("loss_off")),
        "change in the target's family": mean("family_share"),
    }
