"""What trained levels do inside Gemma 3 270M: the cross-entropy they recover, and steering coarse against fine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.gemma_stream import GemmaActivations, gemma_store
from experiments.models import HSAE, SAELENS_BATCH_TOPK, stack_of
from experiments.paper_tables import Size, Stream, n_tokens, trained
from sae_lens_hsae.evaluation import cross_entropy_recovered
from sae_lens_hsae.evaluation.stacks import level_saes
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.steering import add, effect_of

IN_THE_MODEL = (HSAE, "post hoc", SAELENS_BATCH_TOPK)
PROMPTS = 16
"""Rows of text, of which no token was trained on."""
N_STEERED = 8
"""Features of the finest level that have two ancestors; each is pushed, and so are its ancestors."""
STRENGTH = 0.5
"""Length of a push, in median distances of the activations from their centre."""


def reproduce_in_the_model(
    activations: GemmaActivations, folder: Path, size: Size, layer: int = 9, target_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row for each model and level: the share of the cross-entropy recovered; and of steering, for the first model.

    Args:
        activations: what the models are trained on.
        folder: where trained models are kept.
        size: of their training; one seed.
    """
    stream = Stream(layer, target_l0, 0)
    x = activations.unscaled(layer, n_tokens(size))
    factor = x.shape[1] ** 0.5 / x.norm(dim=1).mean().item()
    typical = (x - x.median(0).values).norm(dim=1).median().item()
    store = gemma_store(activations.text, layer, from_the_end=True)
    rows: list[dict[str, Any]] = []
    for model in IN_THE_MODEL:
        levels, forest = stack_of(trained(model, stream, activations, size, folder))
        saes = [_for_the_model(sae, factor, layer) for sae in level_saes(levels)]
        own = torch.get_rng_state()
        store.reset_input_dataset()
        found = cross_entropy_recovered(saes, store.model, store, n_batches=PROMPTS // store.store_batch_size_prompts)
        torch.set_rng_state(own)
        rows += [{"model": model, "level": each.level, "recovered": each.recovered} for each in found]
        if model == HSAE:
            store.reset_input_dataset()
            tokens = store.get_batch_tokens(4)
            rows += _steering(saes, forest, store.model, tokens, STRENGTH * typical)
    return rows


def _for_the_model(sae: Any, factor: float, layer: int) -> Any:
    """A level trained on scaled activations as one for the activations as they are, at its hook point."""
    sae.fold_activation_norm_scaling_factor(factor)
    sae.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    return sae


def _steering(
    saes: Sequence[Any], forest: FeatureForest, model: Any, tokens: torch.Tensor, length: float
) -> list[dict[str, Any]]:
    """Means over features of the finest level of what pushing them, their ancestors and a stranger does."""
    finest = forest.levels[-1]
    deep = [f for f in range(finest.start, finest.stop) if len(forest.path(f)) >= 3]
    chosen = random.Random(0)
    chosen.shuffle(deep)
    effects: dict[str, list[Any]] = {"itself": [], "its parent": [], "its grandparent": [], "another feature": []}
    for feature in deep:
        grandparent, parent, _ = forest.path(feature)[-3:]
        stranger = chosen.randrange(finest.start, finest.stop)
        of_feature = {
            name: effect_of(model, saes, [add(pushed, length)], tokens, feature, forest)
            for name, pushed in zip(effects, (feature, parent, grandparent, stranger), strict=True)
        }
        if of_feature["itself"].n_on == 0:
            continue
        for name, effect in of_feature.items():
            effects[name].append(effect)
        if len(effects["itself"]) == N_STEERED:
            break
    measures = ("kl_on", "kl_off", "loss_on", "loss_off", "family_share")
    return [
        {"pushed": name, "n": len(found)} | {m: fmean(getattr(effect, m) for effect in found) for m in measures}
        for name, found in effects.items()
        if found
    ]
