"""What the forests of Gemma 3 270M are like: their trees, counted and drawn, and whether other seeds find the same."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.gemma_stream import GemmaActivations, gemma_store, hook_of
from experiments.models import HSAE, MATRYOSHKA, SAELENS_BATCH_TOPK, stack_of
from experiments.paper_tables import Size, Stream, n_tokens, trained
from experiments.probe_score import probe_score
from sae_lens_hsae.cli.showcase import trees
from sae_lens_hsae.evaluation import level_saes, seed_stability
from sae_lens_hsae.forest import Concepts, FeatureForest, copies_of_parents
from sae_lens_hsae.interpret.feature_cache import collect_dashboards
from sae_lens_hsae.sae.inference import HierarchicalSAE

POST_HOC = "post hoc"
SAME_RULE = "post hoc, HSAE's rule"
"""The independent SAEs of `POST_HOC`, with parents by the rule that HSAE trains with."""
COUNTED_ON = 50_000
"""Activations on which that rule counts what fires together."""
PROBED_ON = 50_000
"""Activations that the probes learn from."""
PROMPTS = 320
"""Contexts of 128 tokens whose words the drawn trees show."""
TREES_DRAWN = 6
CHILDREN_DRAWN = 2


def gemma_forests(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row per model: trees and copies as means over the seeds, and stability as means over all pairs of seeds.

    Args:
        activations: what the models are trained on.
        folder: where trained models are kept.
        size: of their training.
        layer: after which block.
    """
    rows = []
    for model in (HSAE, SAME_RULE, POST_HOC, SAELENS_BATCH_TOPK):
        stacks = [
            _stack(model, Stream(layer, finest_l0, seed), activations, size, folder) for seed in range(size.seeds)
        ]
        rows.append({"model": model} | _trees_of(stacks) | _stability(stacks))
    return rows


def gemma_probes(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row per model of the first seed: Tree SAE's hierarchy score, by probes that learn from activations."""
    x = activations(layer, n_tokens(size))[:PROBED_ON]
    stream = Stream(layer, finest_l0, 0)
    rows = []
    for model in (HSAE, SAME_RULE, POST_HOC, SAELENS_BATCH_TOPK, MATRYOSHKA):
        saes, forest = _stack(model, stream, activations, size, folder)
        rows.append({"model": model} | probe_score(saes, forest, x))
    return rows


def _stack(model: str, stream: Stream, activations: GemmaActivations, size: Size, folder: Path) -> Any:
    levels, forest = stack_of(trained(POST_HOC if model == SAME_RULE else model, stream, activations, size, folder))
    saes: list[Any] = list(level_saes(levels))
    if model == SAME_RULE:
        x = activations(stream.layer, n_tokens(size))[:COUNTED_ON].split(4096)
        forest = FeatureForest.from_saes(saes, activations=x)
    return saes, forest


def _trees_of(stacks: list[Any]) -> dict[str, float]:
    found = []
    for saes, forest in stacks:
        is_copy = copies_of_parents(forest, torch.cat([sae.W_dec for sae in saes]))
        n_edges = len(forest.edges())
        found.append(
            {
                "features in trees of 3 concepts": Concepts(forest, is_copy).in_trees_share(3),
                "roots with a child": forest.has_children[forest.roots()].double().mean().item(),
                "edges": float(n_edges),
                "copies among them": int(is_copy.sum()) / max(1, n_edges),
            }
        )
    return {name: fmean(row[name] for row in found) for name in found[0]}


def _stability(stacks: list[Any]) -> dict[str, float]:
    """Edges with both ends matched that another seed has, above chance; NaN for one seed."""
    kept = [
        boundary.kept_adjusted
        for one, other in combinations(stacks, 2)
        for boundary in seed_stability(*one, *other).boundaries
    ]
    return {"edges that another seed has, above chance": fmean(kept) if kept else float("nan")}


def gemma_forest(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> tuple[HierarchicalSAE, torch.Tensor]:
    """The first seed's HSAE, reading activations as the model has them, and those (tokens, 640)."""
    sae = trained(HSAE, Stream(layer, finest_l0, 0), activations, size, folder)
    assert isinstance(sae, HierarchicalSAE)
    return sae, activations.for_the_model([sae], layer, n_tokens(size))


def gemma_trees(activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0) -> str:
    """Six trees of the first seed's HSAE, chosen and drawn as the demo does, with words from the end of the corpus."""
    sae, _ = gemma_forest(activations, folder, size, layer, finest_l0)
    store = gemma_store(activations.text, layer, from_the_end=True)
    tokenizer: Any = store.model.tokenizer

    def batches() -> Any:
        for _ in range(PROMPTS // store.store_batch_size_prompts):
            ids = store.get_batch_tokens()
            yield ids, store.get_multi_hook_activations(ids)[hook_of(layer)]

    dashboards = collect_dashboards(sae, sae.forest, batches(), exclude_tokens=tokenizer.all_special_ids)
    return trees(sae, dashboards, tokenizer, TREES_DRAWN, CHILDREN_DRAWN)
