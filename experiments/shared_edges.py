"""Do edges that another seed has, too, read better? Edges of either kind, and strangers, for a reader who is not told.

Expected before the first list was read: of the edges that another seed has twice as many are called a refinement as of
the others, and at most half as many unrelated.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import torch

from experiments.gemma_forests import gemma_batches
from experiments.gemma_stream import GemmaActivations
from experiments.models import WIDE_FAMILIES
from experiments.paper_tables import Size, Stream, n_tokens, trained
from experiments.readability import stranger
from sae_lens_hsae.evaluation import level_saes, shared_edges
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.concepts import COPY_COSINE
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

Edges = list[tuple[str, int, int]]
"""What kind, and flat indices of parent and child."""


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
    batches, tokenizer = gemma_batches(activations.text, layer)
    text_of = TokenTexts(tokenizer).__getitem__
    generator = torch.Generator().manual_seed(0)
    rows = []
    for seed, (sae, is_shared) in enumerate(zip(saes, shared, strict=True)):
        data = collect_dashboards(sae, sae.forest, batches, exclude_tokens=tokenizer.all_special_ids)
        labels = token_labels(data, text_of)
        for kind, *ends in drawn(data, sae.forest, is_shared, generator):
            row: dict[str, Any] = {"kind": kind, "seed": seed}
            for name, feature in zip(("parent", "child"), ends, strict=True):
                row[name] = f"{sae.forest.levels.name(feature)} {labels.get(feature, '–')}"
                contexts = (context_of(data, feature, text_of, slot=slot) for slot in range(N_CONTEXTS))
                row[f"{name} in context"] = " ¦ ".join(contexts)
            rows.append(row)
        if not seed:
            page = folder.parent / f"found-again-{layer}.html"
            title, parting = f"Gemma 3 270M, block {layer}", parting_tokens(tokenizer)
            write_page(
                data, sae.forest, page, text_of, labels, title, separators=parting, found_again={"seed 1": is_shared}
            )
    return [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]


def drawn(data: Dashboards, forest: FeatureForest, is_shared: torch.Tensor, generator: torch.Generator) -> Edges:
    """`N_EDGES` random edges of either kind and `N_STRANGERS`, of features that fire, without copies.

    Args:
        data: of the forest.
        forest: who is whose parent.
        is_shared: (n_features,) bool, of the children.
        generator: of the draws.
    """
    edges = forest.edges()
    parent, child = edges.T
    fires = (data.n_firing[parent] > 0) & (data.n_firing[child] > 0)
    edges = edges[fires & (data.parent_cosine[child] <= COPY_COSINE)]
    edges = edges[torch.randperm(len(edges), generator=generator)]
    again = is_shared[edges[:, 1]]
    found: Edges = []
    for kind, some in (("found again", edges[again]), ("not found again", edges[~again])):
        found += [(kind, above, below) for above, below in some[:N_EDGES].tolist()]
    for above, below in edges[torch.randperm(len(edges), generator=generator)[:N_STRANGERS]].tolist():
        found.append(("stranger", above, stranger(forest, below, generator)))
    return found


def _trained(stream: Stream, activations: GemmaActivations, size: Size, folder: Path) -> HierarchicalSAE:
    sae = trained(WIDE_FAMILIES, stream, activations, size, folder)
    assert isinstance(sae, HierarchicalSAE)
    return sae
