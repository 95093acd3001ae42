"""Do edges that another seed has, too, read better? Edges of either kind, and strangers, for a reader who is not told.

Expected before the first list was read: of the edges that another seed has twice as many are called a refinement as of
the others, and at most half as many unrelated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.gemma_forests import gemma_batches
from experiments.gemma_stream import GemmaActivations
from experiments.models import WIDE_FAMILIES
from experiments.paper_tables import Size, Stream, n_tokens, trained
from experiments.readability import stranger
from sae_lens_hsae.evaluation import level_saes, shared_edges
from sae_lens_hsae.forest.concepts import COPY_COSINE
from sae_lens_hsae.interpret.family_text import context_of
from sae_lens_hsae.interpret.feature_cache import collect_dashboards
from sae_lens_hsae.interpret.labels import token_labels
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.token_text import TokenTexts

N_EDGES = 40
"""Of those that another seed has, and of those that it has not."""
N_STRANGERS = 20
"""Edges with another feature of the child's level in the child's place."""

N_CONTEXTS = 3


def edges_to_read(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """Edges of the first seed that are no copies, in random order; ``kind`` is what a reader must not see.

    Args:
        activations: what the models are trained on, with the text.
        folder: where trained models are kept.
        size: of their training; the first two seeds are compared.
        layer: after which block.
    """
    sae, other = (trained(WIDE_FAMILIES, Stream(layer, finest_l0, seed), activations, size, folder) for seed in (0, 1))
    assert isinstance(sae, HierarchicalSAE)
    assert isinstance(other, HierarchicalSAE)
    is_shared = shared_edges(level_saes(sae), sae.forest, level_saes(other), other.forest)
    activations.for_the_model([sae], layer, n_tokens(size))
    batches, tokenizer = gemma_batches(activations.text, layer)
    dashboards = collect_dashboards(sae, sae.forest, batches, exclude_tokens=tokenizer.all_special_ids)
    text_of = TokenTexts(tokenizer).__getitem__
    labels = token_labels(dashboards, text_of)
    generator = torch.Generator().manual_seed(0)

    edges = sae.forest.edges()
    parent, child = edges.T
    fires = (dashboards.n_firing[parent] > 0) & (dashboards.n_firing[child] > 0)
    edges = edges[fires & (dashboards.parent_cosine[child] <= COPY_COSINE)]
    edges = edges[torch.randperm(len(edges), generator=generator)]
    shared = is_shared[edges[:, 1]]
    drawn: list[tuple[str, int, int]] = []
    for kind, some in (("shared", edges[shared]), ("this seed's own", edges[~shared])):
        drawn += [(kind, above, below) for above, below in some[:N_EDGES].tolist()]
    for above, below in edges[torch.randperm(len(edges), generator=generator)[:N_STRANGERS]].tolist():
        drawn.append(("stranger", above, stranger(sae.forest, below, generator)))
    rows = []
    for place in torch.randperm(len(drawn), generator=generator).tolist():
        kind, above, below = drawn[place]
        row = {"kind": kind}
        for name, feature in (("parent", above), ("child", below)):
            row[name] = f"{sae.forest.levels.name(feature)} {labels.get(feature, '–')}"
            row[f"{name} in context"] = " ¦ ".join(
                context_of(dashboards, feature, text_of, slot=slot) for slot in range(N_CONTEXTS)
            )
        rows.append(row)
    return rows
