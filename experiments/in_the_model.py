"""What trained levels do inside Gemma 3 270M: the cross-entropy they recover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.gemma_stream import GemmaActivations, gemma_store
from experiments.models import CENTRED, HSAE, SAELENS_BATCH_TOPK, stack_of
from experiments.paper_tables import Size, Stream, n_tokens, trained
from sae_lens_hsae.evaluation import cross_entropy_recovered
from sae_lens_hsae.evaluation.stacks import level_saes

IN_THE_MODEL = (HSAE, "post hoc" + CENTRED, SAELENS_BATCH_TOPK + CENTRED, "post hoc", SAELENS_BATCH_TOPK)
PROMPTS = 16
"""Rows of text, of which no token was trained on."""


def reproduce_in_the_model(
    activations: GemmaActivations, folder: Path, size: Size, layer: int = 9, target_l0: float = 16.0
) -> list[dict[str, Any]]:
    """One row for each model and level: the share of the cross-entropy recovered.

    Args:
        activations: what the models are trained on.
        folder: where trained models are kept.
        size: of their training; one seed.
    """
    stream = Stream(layer, target_l0, 0)
    store = gemma_store(activations.text, layer, from_the_end=True)
    places: list[tuple[str, int]] = []
    saes: list[Any] = []
    for model in IN_THE_MODEL:
        levels, _ = stack_of(trained(model, stream, activations, size, folder))
        own: list[Any] = list(level_saes(levels))
        activations.for_the_model(own, layer, n_tokens(size))
        places += [(model, level) for level in range(len(own))]
        saes += own
    # All in one call, which gives every level the same tokens.
    found = cross_entropy_recovered(saes, store.model, store, n_batches=PROMPTS // store.store_batch_size_prompts)
    return [
        {"model": model, "level": level, "recovered": each.recovered}
        for (model, level), each in zip(places, found, strict=True)
    ]
