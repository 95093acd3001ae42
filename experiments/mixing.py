"""What does a small mixing buffer cost? The activations as the text has them, through SAELens' buffer of several sizes.

Expected beforehand: with the 20 contexts that SAELens mixes by default levels explain 0.01 less than with 1,000, and
features are silent; 100 contexts already cost less than half of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from sae_lens.training.mixing_buffer import mixing_buffer

from experiments.gemma_stream import CONTEXT_SIZE, GemmaActivations
from experiments.kept_names import named_by
from experiments.models import BATCH_SIZE, WIDE_FAMILIES, model_and_optimizer, new_sae, settings_of, trainer_for
from experiments.paper_tables import Size, n_tokens
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

CONTEXTS = (20, 100, 1000, None)
"""In the buffer, which is what ``n_batches_in_buffer`` counts; None mixes the whole text."""


def reproduce_mixing(
    activations: GemmaActivations, folder: Path, size: Size, layer: int, finest_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row per size of the buffer: what levels with widths that grow by four explain of ordinary tokens, and so on.

    Args:
        activations: what the models are trained on, but for the end of the text, on which they are measured.
        folder: where finished cells are kept.
        size: of their training.
        layer: after which block.
        finest_l0: L̂0 of the finest level.
    """
    settings = settings_of(WIDE_FAMILIES, finest_l0, size.steps)
    cells = [
        Cell(
            named_by(f"mixing-{contexts}-layer{layer}-seed{seed}-{size.name}", settings),
            trained_and_measured,
            (contexts, seed, activations, size, layer, finest_l0),
        )
        for contexts in CONTEXTS
        for seed in range(size.seeds)
    ]
    return finish_cells(cells, folder, "Mixing", 1)


def trained_and_measured(
    contexts: int | None, seed: int, activations: GemmaActivations, size: Size, layer: int, finest_l0: float
) -> dict[str, Any]:
    """One training with a buffer of this many contexts."""
    x = activations.in_order(layer, n_tokens(size))
    x, held_out = x[: -size.held_out], x[-size.held_out :]
    torch.manual_seed(seed)
    model, optimizer = model_and_optimizer(WIDE_FAMILIES, size.steps)
    sae = new_sae(model, finest_l0, x.shape[1])
    n_mixed = len(x) if contexts is None else contexts * CONTEXT_SIZE
    trainer_for(sae, mixing_buffer(n_mixed, BATCH_SIZE, _again_and_again(x)), size.steps, optimizer).fit()
    assert isinstance(sae, HierarchicalTrainingSAE)
    evaluation = evaluate_forest(sae, sae.forest, held_out.split(BATCH_SIZE))
    return {
        "contexts": contexts or "all",
        "seed": seed,
        "variance explained of ordinary tokens": [round(of.variance_explained_ordinary, 3) for of in evaluation.levels],
        "L0": [round(of.l0, 2) for of in evaluation.levels],
        "silent": [of.n_dead for of in evaluation.levels],
        "edges": sum(of.n_pairs for of in evaluation.boundaries),
    }


def _again_and_again(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """A few contexts at a time, as the language model reads them, from the start to the end and again."""
    return chain.from_iterable(repeat(x.split(8 * CONTEXT_SIZE)))
