"""Do edges that another seed has, too, read better? Edges of either kind, and strangers, for a reader who is not told.

Expected before the first list was read: of the edges that another seed has twice as many are called a refinement as of
the others, and at most half as many unrelated. Of rivals: at least 0.1 more of the edges of SAEs that were trained one
by one are unrelated than of HSAE's, and the structural loss changes less than that. Of levels that grow by four, with a
bar of 0.4 and without the lower end of P(parent | child): at most 0.35 of HSAE's, and 0.1 fewer than of SAELens'
BatchTopK; later, with the lower end and a bar of 0.25, of HSAE alone: at most 0.38; and last, of all three by that
rule: BatchTopK's are within 0.1 of HSAE's, and the JumpReLU SAEs' at least 0.15 above. Of the same children with the
next best parent: at least 0.15 more are unrelated, and at most two thirds as many are refinements. Of BatchTopK
levels' edges as many are unrelated as of the JumpReLU levels', within 0.08. Of centred JumpReLU SAEs, read last: at
least 0.08 more are unrelated than of HSAE's in the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, permutations, product
from pathlib import Path
from typing import Any

import torch

from experiments.gemma_forests import COUNTED_ON, POST_HOC, WITHOUT_LOSS, gemma_batches, stack_with_parents
from experiments.gemma_stream import GemmaActivations
from experiments.models import (
    CENTRED,
    HSAE,
    SAELENS_BATCH_TOPK,
    SAME_RULE,
    WIDE_BATCH_TOPK,
    WIDE_BATCH_TOPK_LEVELS,
    WIDE_FAMILIES,
    WIDE_POST_HOC,
)
from experiments.paper_tables import Size, Stream, n_tokens, trained
from experiments.readability import stranger
from sae_lens_hsae.evaluation import level_saes, shared_edges
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.parents import BREADTH_PENALTY
from sae_lens_hsae.interpret.family_text import context_of
from sae_lens_hsae.interpret.feature_cache import Dashboards, collect_dashboards
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.interpret.page import write_page
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.token_text import TokenTexts, parting_tokens

N_EDGES = 50
"""Per seed, of those that the other seed has, and of those that it has not."""
N_STRANGERS = 10
"""Per seed: edges with another feature of the child's level in the child's place."""
N_CONTEXTS = 3
RIVALS = (HSAE, WITHOUT_LOSS, SAELENS_BATCH_TOPK + SAME_RULE, POST_HOC + SAME_RULE)
"""Levels that double, of HSAE and of SAEs that are trained one by one."""
WIDE_RIVALS = (
    *(WIDE_FAMILIES, WIDE_BATCH_TOPK + SAME_RULE, WIDE_POST_HOC + SAME_RULE, WIDE_POST_HOC),
    *(WIDE_BATCH_TOPK_LEVELS, WIDE_BATCH_TOPK + CENTRED + SAME_RULE, WIDE_POST_HOC + CENTRED + SAME_RULE),
)
"""Levels that grow by four."""


def edges_to_read(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """Edges of the first two seeds that are no copies, in random order; ``kind`` is what a reader must not see.

    The first seed's explorer page, ``found-again-LAYER.html``, stands beside ``folder`` afterwards.

    Args:
        activations: what the models are trained on, with the text.
        folder: where trained models are kept.
        size: of their training.
        layer: after which block.
    """
    saes = [_trained(Stream(layer, finest_l0, seed), activations, size, folder) for seed in (0, 1)]
    shared = [
        shared_edges(level_saes(sae), sae.forest, level_saes(other), other.forest) for sae, other in permutations(saes)
    ]
    activations.for_the_model(saes, layer, n_tokens(size))
    reader = _Reader(activations.text, layer)
    rows = []
    for sae, again in zip(saes, shared, strict=True):
        data = reader.dashboards(sae, sae.forest)
        edges = drawable(data, sae.forest, reader.generator)
        is_again = again[edges[:, 1]]
        rows += reader.rows("found again", data, edges[is_again][:N_EDGES])
        rows += reader.rows("not found again", data, edges[~is_again][:N_EDGES])
        rows += reader.rows("stranger", data, strangers(sae.forest, edges, reader.generator)[:N_STRANGERS])
        if sae is saes[0]:
            reader.write_page(folder.parent / f"found-again-{layer}.html", data, {"seed 1": again})
    return reader.shuffled(rows)


def rivals_to_read(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """Random edges that are no copies, of each of `RIVALS` as the last seed trains it, in random order."""
    streams = [Stream(layer, finest_l0, size.seeds - 1)]
    return _edges_of(RIVALS, streams, activations, size, folder)


def wide_rivals_to_read(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """The same of each of `WIDE_RIVALS` and every seed."""
    streams = [Stream(layer, finest_l0, seed) for seed in range(size.seeds)]
    return _edges_of(WIDE_RIVALS, streams, activations, size, folder)


def next_best_to_read(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """Random children of HSAE's with their parents, and the same children with the next best parents, shuffled.

    Of every seed; every ``similarity`` is counted on the first `COUNTED_ON` activations.
    """
    reader = _Reader(activations.text, layer)
    rows = []
    for seed in range(size.seeds):
        saes, forest = stack_with_parents(WIDE_FAMILIES, Stream(layer, finest_l0, seed), activations, size, folder)
        found = next_best(saes, forest, activations(layer, n_tokens(size))[:COUNTED_ON])
        activations.for_the_model(saes, layer, n_tokens(size))
        data = reader.dashboards(saes, forest)
        edges = drawable(data, forest, reader.generator)[: 2 * N_EDGES]
        of_seed = []
        for kind, which in (("its parent", 0), ("the next best", 1)):
            own = [found[child][which] for _, child in edges.tolist()]
            pairs = torch.stack([torch.tensor([above for above, _ in own]), edges[:, 1]], dim=1)
            rows_of_kind = reader.rows(kind, data, pairs)
            of_seed += [row | {"similarity": s} for row, (_, s) in zip(rows_of_kind, own, strict=True)]
        of_seed += reader.rows("stranger", data, strangers(forest, edges, reader.generator)[:N_STRANGERS])
        rows += [row | {"seed": seed} for row in of_seed]
    return reader.shuffled(rows)


@torch.no_grad()
def next_best(
    saes: Sequence[Any], forest: FeatureForest, x: torch.Tensor
) -> dict[int, tuple[tuple[int, float], tuple[int, float]]]:
    """For each child its parent, and the most similar other feature of the level above, each with its similarity.

    That is P(parent | child) − 2 P(parent) on x (n, d_in), without what else the rule for parents asks.
    """
    fires = torch.cat([torch.cat([sae.encode(part) != 0 for sae in saes], dim=1) for part in x.split(4096)]).float()
    often = fires.mean(0)
    found = {}
    for above, own in pairwise(forest.levels):
        together = fires[:, own].T @ fires[:, above] / len(x)
        similarity = together / often[own, None] - BREADTH_PENALTY * often[above]
        for row, child in zip(similarity, range(own.start, own.stop), strict=True):
            parent = forest.parent(child)
            if parent is not None and often[child] > 0:
                its = (parent, row[parent - above.start].item())
                row[parent - above.start] = float("-inf")
                found[child] = (its, (above.start + int(row.argmax()), row.max().item()))
    return found


def _edges_of(
    models: Sequence[str], streams: Sequence[Stream], activations: GemmaActivations, size: Size, folder: Path
) -> list[dict[str, Any]]:
    reader = _Reader(activations.text, streams[0].layer)
    rows = []
    for model, stream in product(models, streams):
        saes, forest = stack_with_parents(model, stream, activations, size, folder)
        activations.for_the_model(saes, stream.layer, n_tokens(size))
        data = reader.dashboards(saes, forest)
        edges = drawable(data, forest, reader.generator)
        of_model = reader.rows(model, data, edges[: 2 * N_EDGES])
        of_model += reader.rows("stranger", data, strangers(forest, edges, reader.generator)[:N_STRANGERS])
        rows += [row | {"seed": stream.seed} for row in of_model]
    return reader.shuffled(rows)


def drawable(data: Dashboards, forest: FeatureForest, generator: torch.Generator) -> torch.Tensor:
    """(n, 2) edges of features that fire, copies left out, in random order."""
    edges = forest.edges()
    parent, child = edges.T
    fires = (data.n_firing[parent] > 0) & (data.n_firing[child] > 0)
    edges = edges[fires & ~data.is_copy[child]]
    return edges[torch.randperm(len(edges), generator=generator)]


def strangers(forest: FeatureForest, edges: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same in another order, with another feature of the child's level in each child's place."""
    some = edges[torch.randperm(len(edges), generator=generator)].tolist()
    return torch.tensor([(above, stranger(forest, below, generator)) for above, below in some])


class _Reader:
    """What a reader is shown of features: labels and contexts, on the corpus's last contexts."""

    def __init__(self, text: Path | None, layer: int) -> None:
        self._batches, self._tokenizer = gemma_batches(text, layer)
        self._text_of = TokenTexts(self._tokenizer).__getitem__
        self._title = f"Gemma 3 270M, block {layer}"
        self.generator = torch.Generator().manual_seed(0)

    def dashboards(self, saes: Any, forest: FeatureForest) -> Dashboards:
        return collect_dashboards(saes, forest, self._batches, exclude_tokens=self._tokenizer.all_special_ids)

    def rows(self, kind: str, data: Dashboards, edges: torch.Tensor) -> list[dict[str, Any]]:
        levels, labels = Levels(data.level_widths), token_labels(data, self._text_of)
        rows = []
        for ends in edges.tolist():
            row: dict[str, Any] = {"kind": kind, "similarity": _similarity(data, *ends)}
            for name, feature in zip(("parent", "child"), ends, strict=True):
                row[name] = f"{levels.name(feature)} {labels.get(feature, '–')}"
                slots = (data.context_numbers[feature, :N_CONTEXTS] >= 0).nonzero().flatten().tolist()
                contexts = [context_of(data, feature, self._text_of, slot=slot) for slot in slots]
                row[f"{name} in context"] = " ¦ ".join(contexts)
            rows.append(row)
        return rows

    def write_page(self, path: Path, data: Dashboards, found_again: dict[str, torch.Tensor]) -> None:
        forest, labels = FeatureForest(data.parents, data.level_widths), token_labels(data, self._text_of)
        separators = parting_tokens(self._tokenizer)
        write_page(
            data, forest, path, self._text_of, labels, self._title, separators=separators, found_again=found_again
        )

    def shuffled(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [rows[place] for place in torch.randperm(len(rows), generator=self.generator).tolist()]


def _similarity(data: Dashboards, parent: int, child: int) -> float | None:
    """P(parent | child) − 2 P(parent) of an edge; None for a stranger."""
    if data.parents[child] != parent:
        return None
    return (data.parent_given_child[child] - BREADTH_PENALTY * data.frequency[parent]).item()


def _trained(stream: Stream, activations: GemmaActivations, size: Size, folder: Path) -> HierarchicalSAE:
    sae = trained(WIDE_FAMILIES, stream, activations, size, folder)
    assert isinstance(sae, HierarchicalSAE)
    return sae
