"""What the forests of Gemma 3 270M are like: trees counted, read by their words, and found again by other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.gemma_stream import GemmaActivations, gemma_store, hook_of
from experiments.models import (
    CENTRED,
    HSAE,
    MATRYOSHKA,
    SAELENS_BATCH_TOPK,
    SAME_RULE,
    SHAPES,
    WIDE_BATCH_TOPK,
    WIDE_BATCH_TOPK_LEVELS,
    WIDE_FAMILIES,
    WIDE_POST_HOC,
    stack_of,
)
from experiments.paper_tables import Size, Stream, n_tokens, trained
from experiments.probe_score import probe_score
from experiments.readability import measures, wordnet_of_debian
from sae_lens_hsae.evaluation import level_saes, seed_stability
from sae_lens_hsae.evaluation.stability import EdgeAgreement
from sae_lens_hsae.forest import NO_PARENT, Concepts, FeatureForest, ParentRule, copies_of_parents
from sae_lens_hsae.interpret.feature_cache import collect_dashboards
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.token_text import TokenTexts

POST_HOC = "post hoc"
WITHOUT_LOSS = "ρ = 0"
"""HSAE trained without the structural loss."""
NEAREST_ROWS = ", nearest decoder row"
"""After a model's name: its SAEs with the feature of the nearest decoder row as parent, whatever fires."""
DOUBLING = (HSAE, WITHOUT_LOSS, POST_HOC + SAME_RULE, SAELENS_BATCH_TOPK + SAME_RULE, POST_HOC, SAELENS_BATCH_TOPK)
"""HSAE and its rivals with levels that double, and below those that grow by four."""
WIDE_ELSEWHERE = (WIDE_FAMILIES, WIDE_POST_HOC + CENTRED + SAME_RULE)
"""Those of them that are trained after other blocks, too."""
WIDE = (
    *(*WIDE_ELSEWHERE, WIDE_BATCH_TOPK_LEVELS, WIDE_BATCH_TOPK + CENTRED + SAME_RULE),
    *(WIDE_POST_HOC + SAME_RULE, WIDE_BATCH_TOPK + SAME_RULE, WIDE_POST_HOC, WIDE_BATCH_TOPK),
)
COUNTED_ON = 50_000
"""Activations on which `SAME_RULE` counts what fires together."""
BARS = (0.2, 0.25, 0.3, 0.4, 0.5)
"""Least similarities of a parent (`minimum_similarity`)."""
PROBED_ON = 50_000
"""Activations that the probes learn from."""
PROMPTS = 320
"""Contexts of 128 tokens, from the end of the corpus, whose words name the features."""


def gemma_forests(
    activations: GemmaActivations,
    folder: Path,
    size: Size,
    layer: int,
    finest_l0: float = 16.0,
    models: Sequence[str] = DOUBLING,
) -> list[dict[str, Any]]:
    """One row per model: trees and copies as means over the seeds, and stability as means over all pairs of seeds.

    Edges of features that do not fire on the held-out activations are left out, and such features are in no tree.

    Args:
        activations: what the models are trained on.
        folder: where trained models are kept.
        size: of their training.
        layer: after which block.
        finest_l0: L̂0 of the finest level.
        models: names, with the rule for parents.
    """
    x = activations(layer, n_tokens(size))[-size.held_out :]
    rows = []
    for model in models:
        stacks = []
        for seed in range(size.seeds):
            saes, forest = stack_with_parents(model, Stream(layer, finest_l0, seed), activations, size, folder)
            stacks.append((saes, *_of_living(forest, _fires(saes, x))))
        rows.append({"model": model} | _trees_of(stacks) | _stability(stacks))
    return rows


def gemma_widths(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row per shape of the levels, means over the seeds: trees, copies, and whether children read as parts.

    The last columns are WordNet's share of `readability` and that of strangers.
    """
    batches, tokenizer = gemma_batches(activations.text, layer)
    text_of, wordnet = TokenTexts(tokenizer).__getitem__, wordnet_of_debian()
    x = activations(layer, n_tokens(size))[-size.held_out :]
    rows = []
    for model in (HSAE, *SHAPES):
        stacks, read = [], []
        for seed in range(size.seeds):
            sae = trained(model, Stream(layer, finest_l0, seed), activations, size, folder)
            assert isinstance(sae, HierarchicalSAE)
            saes = list(level_saes(sae))
            stacks.append((saes, *_of_living(sae.forest, _fires(saes, x))))
            activations.for_the_model([sae], layer, n_tokens(size))
            dashboards = collect_dashboards(sae, sae.forest, batches, exclude_tokens=tokenizer.all_special_ids)
            judged = measures(dashboards, text_of, wordnet)[2:]
            read.append({row["measure"]: row["share"] for row in judged})
            read[-1] |= {f"{row['measure']}: strangers": row["strangers"] for row in judged}
        rows.append(
            {"model": model}
            | _trees_of(stacks)
            | _stability(stacks)
            | {measure: fmean(row[measure] for row in read) for measure in sorted(read[0])}
        )
    return rows


def gemma_bars(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row per model and bar: the forest of the same levels, made again with that bar.

    Means over the seeds, as of `gemma_forests`.
    """
    everything = activations(layer, n_tokens(size))
    counted, x = everything[:COUNTED_ON].split(4096), everything[-size.held_out :]
    rows = []
    for model in (HSAE, POST_HOC, SAELENS_BATCH_TOPK, *SHAPES, WIDE_BATCH_TOPK):
        streams = [Stream(layer, finest_l0, seed) for seed in range(size.seeds)]
        found = [stack_with_parents(model, stream, activations, size, folder)[0] for stream in streams]
        fires = [_fires(saes, x) for saes in found]
        for bar in BARS:
            rule, stacks = ParentRule(minimum_similarity=bar), []
            for saes, own in zip(found, fires, strict=True):
                forest = FeatureForest.from_saes(saes, rule, activations=counted)
                stacks.append((saes, *_of_living(forest, own)))
            rows.append({"model": model, "bar": bar} | _trees_of(stacks) | _stability(stacks))
    return rows


def gemma_batches(text: Path | None, layer: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], Any]:
    """Token ids and activations of the corpus's last `PROMPTS` contexts, and the model's tokenizer."""
    store = gemma_store(text, layer, from_the_end=True)
    batches = []
    for _ in range(PROMPTS // store.store_batch_size_prompts):
        ids = store.get_batch_tokens()
        batches.append((ids, store.get_multi_hook_activations(ids)[hook_of(layer)]))
    return batches, store.model.tokenizer


def gemma_probes(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row per model: Tree SAE's hierarchy score, by probes that learn from activations.

    Means over the seeds, and half the range of the score over them.
    """
    x = activations(layer, n_tokens(size))[:PROBED_ON]
    rows = []
    models = (HSAE, HSAE + NEAREST_ROWS, POST_HOC + SAME_RULE, SAELENS_BATCH_TOPK + SAME_RULE, POST_HOC)
    for model in (*models, SAELENS_BATCH_TOPK, MATRYOSHKA + SAME_RULE, MATRYOSHKA):
        found = []
        for seed in range(size.seeds):
            saes, forest = stack_with_parents(model, Stream(layer, finest_l0, seed), activations, size, folder)
            found.append(probe_score(saes, forest, x))
        scores = [row["score"] for row in found]
        means = {name: fmean(row[name] for row in found) for name in found[0]}
        rows.append({"model": model} | means | {"± score": (max(scores) - min(scores)) / 2})
    return rows


def stack_with_parents(model: str, stream: Stream, activations: GemmaActivations, size: Size, folder: Path) -> Any:
    """The levels of a trained model and its forest, by the rule after the model's name."""
    name = model.removesuffix(SAME_RULE).removesuffix(NEAREST_ROWS)
    levels, forest = stack_of(trained(name, stream, activations, size, folder))
    saes: list[Any] = list(level_saes(levels))
    if model.endswith(SAME_RULE):
        x = activations(stream.layer, n_tokens(size))[:COUNTED_ON].split(4096)
        forest = FeatureForest.from_saes(saes, activations=x)
    if model.endswith(NEAREST_ROWS):
        everyone = ParentRule("decoder", minimum_similarity=None, unassigned_fraction=0.0)
        forest = FeatureForest.from_saes(saes, everyone)
    return saes, forest


def _fires(saes: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """(tokens, features) bool, on activations (tokens, d_in)."""
    return torch.cat([torch.cat([sae.encode(part) != 0 for sae in saes], dim=1) for part in x.split(4096)])


def _of_living(forest: FeatureForest, fires: torch.Tensor) -> tuple[FeatureForest, torch.Tensor]:
    """The forest without edges of features that never fire, and P(parent | child) of its edges."""
    parents, n_firing = forest.parents, fires.sum(0)
    above = parents.clamp(min=0)
    parents[(n_firing == 0) | (n_firing[above] == 0)] = NO_PARENT
    child = (parents != NO_PARENT).nonzero().flatten()
    together = (fires[:, child] & fires[:, parents[child]]).sum(0)
    return FeatureForest(parents, forest.level_widths), together / n_firing[child]


def _trees_of(stacks: list[Any]) -> dict[str, float]:
    found = []
    for saes, forest, parent_given_child in stacks:
        is_copy = copies_of_parents(forest, torch.cat([sae.W_dec for sae in saes]))
        n_edges = len(forest.edges())
        found.append(
            {
                "features in trees of 3 concepts": Concepts(forest, is_copy).in_trees_share(3),
                "roots with a child": forest.has_children[forest.roots()].double().mean().item(),
                "edges": float(n_edges),
                "copies among them": int(is_copy.sum()) / max(1, n_edges),
                "P(parent given child)": parent_given_child.double().mean().item(),
            }
        )
    return {name: fmean(row[name] for row in found) for name in found[0]}


def _stability(stacks: list[Any]) -> dict[str, float]:
    """Edges that another seed has, of all and of those that are no copies, and, above chance, where both ends match.

    Means over all ordered pairs of seeds; NaN of one seed.
    """
    everyone, no_copies, of_matched = [], [], []
    for (saes, forest, _), (others, other_forest, _) in permutations(stacks, 2):
        boundaries = seed_stability(saes, forest, others, other_forest)
        everyone.append(_share_found(forest, boundaries))
        of_matched += [boundary.kept_adjusted for boundary in boundaries]
        # The other forest keeps its copies: an edge is there, too, where its ends are a little closer to each other.
        forest = _without_copies(saes, forest)
        no_copies.append(_share_found(forest, seed_stability(saes, forest, others, other_forest)))
    return {
        "edges that another seed has": _mean(everyone),
        "without copies": _mean(no_copies),
        "of those with both ends matched, above chance": _mean(of_matched),
    }


def _share_found(forest: FeatureForest, boundaries: Sequence[EdgeAgreement]) -> float:
    return sum(boundary.n_common for boundary in boundaries) / max(1, len(forest.edges()))


def _mean(shares: list[float]) -> float:
    return fmean(shares) if shares else float("nan")


def _without_copies(saes: Sequence[Any], forest: FeatureForest) -> FeatureForest:
    is_copy = copies_of_parents(forest, torch.cat([sae.W_dec for sae in saes]))
    return FeatureForest(forest.parents.masked_fill(is_copy, NO_PARENT), forest.level_widths)


def gemma_forest(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> tuple[HierarchicalSAE, torch.Tensor]:
    """The first seed's HSAE, reading activations as the model has them, and those (tokens, 640)."""
    sae = trained(HSAE, Stream(layer, finest_l0, 0), activations, size, folder)
    assert isinstance(sae, HierarchicalSAE)
    return sae, activations.for_the_model([sae], layer, n_tokens(size))
