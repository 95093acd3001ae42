"""The paper's comparisons at a size that two cores can run: which models meet on which streams of activations.

One cell is one model trained on one stream: a layer, a target L0, a seed. Cells are shared between tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainingSAE

from experiments.centred import Coordinates
from experiments.kept_names import named_by
from experiments.matryoshka import evaluate_groups
from experiments.models import (
    AT_OTHER_RATES,
    BATCH_SIZE,
    BATCH_TOPK,
    CENTRED,
    HSAE,
    IDEAS,
    LEVEL_BY_LEVEL,
    MATRYOSHKA,
    NORMALIZED_BATCH_TOPK,
    ORDINARY,
    SAELENS_BATCH_TOPK,
    SAELENS_JUMPRELU,
    SAELENS_OPTIMIZER,
    WHITENED_BATCH_TOPK,
    WIDE_BATCH_TOPK,
    WIDE_BATCH_TOPK_LEVELS,
    WIDE_FAMILIES,
    WIDE_POST_HOC,
    matryoshka_levels,
    model_and_optimizer,
    new_batch_topk,
    new_sae,
    settings_of,
    stack_of,
    train,
    widths_and_targets,
)
from experiments.saelens_jumprelu import new_jumprelu
from experiments.sinks import SINKS, WithSinks
from sae_lens_hsae.cli.kept_cells import Cell, file_name, finish_cells, missing
from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.evaluation.outliers import SEEN_FIRST, usual
from sae_lens_hsae.storage.whole_files import folder_written_whole

Activations = Callable[[int, int], torch.Tensor]
"""(layer, tokens) → that many activations (tokens, d_in), shuffled, of mean norm √d_in."""


@dataclass(frozen=True)
class Size:
    """How long is trained and how much is measured.

    Attributes:
        steps: training steps of every model.
        seeds: how many; of the initial weights and of the order of the batches.
        held_out: tokens measured on, which are not trained on.
        places: how many of a table's layers and targets, from the first on; None takes all.
        tokens: activations in all, of which those trained on are seen again and again; None takes as many as the steps
            need.
    """

    steps: int = 1000
    seeds: int = 3
    held_out: int = 100_000
    places: int | None = None
    tokens: int | None = None

    @property
    def name(self) -> str:
        return f"{self.steps}steps-{n_tokens(self)}tokens-{self.held_out}held_out"


FULL = Size()
QUICK = Size(steps=150, seeds=1, held_out=20_000, places=1)


@dataclass(frozen=True)
class Stream:
    """Where activations come from, and what is asked of the models that read them: L̂0 of the finest level."""

    layer: int
    target_l0: float
    seed: int

    @property
    def name(self) -> str:
        return f"layer{self.layer}-finest_l0_{self.target_l0:g}-seed{self.seed}"


@dataclass(frozen=True)
class Table:
    """A comparison: these models on these layers and targets."""

    models: tuple[str, ...]
    places: tuple[tuple[int, float], ...] = ((3, 16),)

    def streams(self, size: Size) -> list[Stream]:
        places = self.places[: size.places]
        return [Stream(layer, target, seed) for layer, target in places for seed in range(size.seeds)]


TABLES = {
    "main": Table((HSAE, "HSAE (paper)", "post hoc", SAELENS_BATCH_TOPK, MATRYOSHKA), ((3, 16), (1, 16), (5, 16))),
    "gemma": Table((HSAE, "HSAE (paper)", "post hoc", SAELENS_BATCH_TOPK), ((9, 16), (12, 16), (5, 16))),
    "gemma-rates": Table(
        (
            *(HSAE, *(name for name, (model, _) in AT_OTHER_RATES.items() if model == HSAE)),
            *(name + CENTRED for name in ("post hoc", SAELENS_BATCH_TOPK)),
            *(name + CENTRED for name, (model, _) in AT_OTHER_RATES.items() if model != HSAE),
        ),
        ((9, 16),),
    ),
    "gemma-long": Table((HSAE, "ρ = 0", "post hoc", SAELENS_BATCH_TOPK, HSAE + SAELENS_OPTIMIZER), ((9, 16),)),
    "gemma-centred": Table(
        (
            HSAE,
            *(
                name + of_these
                for name in ("post hoc", SAELENS_BATCH_TOPK)
                for of_these in ("", ORDINARY, CENTRED, CENTRED + ORDINARY)
            ),
            *(SAELENS_JUMPRELU, SAELENS_JUMPRELU + CENTRED),
        ),
        ((9, 16),),
    ),
    "gemma-wide": Table(
        (
            *(WIDE_FAMILIES, WIDE_BATCH_TOPK_LEVELS, WIDE_POST_HOC, WIDE_BATCH_TOPK),
            *(WIDE_POST_HOC + CENTRED, WIDE_BATCH_TOPK + CENTRED),
        ),
        ((9, 16),),
    ),
    "gemma-wide-elsewhere": Table((WIDE_FAMILIES, WIDE_POST_HOC + CENTRED), ((12, 16),)),
    "gemma-ideas": Table((*IDEAS, "post hoc"), ((9, 16),)),
    "gemma-whitened": Table((HSAE, SAELENS_BATCH_TOPK, WHITENED_BATCH_TOPK), ((9, 16),)),
    "sinks": Table((HSAE, "all tokens count alike", "post hoc", SAELENS_BATCH_TOPK)),
    "ideas": Table((*IDEAS, "HSAE (paper)", "post hoc")),
    "mechanisms": Table(("HSAE (paper)", "no constraint", "no perturbation", "paper, ρ = 0.1 and r = 0", "post hoc")),
    "trees": Table(("HSAE (paper)", "full tree", "fixed tree", "binary tree")),
    "similarity": Table(("HSAE (paper)", "decoder cosine", "co-activation")),
    "activation": Table((HSAE, BATCH_TOPK)),
}
"""The comparisons that `reproduce` makes, by name."""


def reproduce(
    table: str, activations: Activations, folder: Path, size: Size = FULL, workers: int = 1
) -> list[dict[str, Any]]:
    """Train and measure the cells of a table that ``folder`` does not hold yet; all its cells in the end.

    Args:
        table: a name in ``TABLES``.
        activations: where they come from; with several workers, picklable.
        folder: where trained models and finished cells are kept.
        size: of training and measuring.
        workers: processes that share the cores.

    Raises:
        ValueError: if there is no such table, or ``workers`` is below 1.
    """
    if table not in TABLES:
        raise ValueError(f"table={table!r}: choose one of {', '.join(TABLES)}")
    chosen = TABLES[table]
    pairs = [(stream, model) for stream in chosen.streams(size) for model in chosen.models]
    return finish_trainings("measure", pairs, measure, activations, folder, f"Table {table}", size, workers)


def finish_trainings(
    kind: str,
    pairs: Sequence[tuple[Stream, str]],
    compute: Callable[..., dict[str, Any]],
    activations: Activations,
    folder: Path,
    title: str,
    size: Size,
    workers: int,
    *more: Any,
) -> list[dict[str, Any]]:
    """One cell for each model on each stream: ``compute(model, stream, activations, size, folder, *more)``.

    ``kind`` begins the cells' names, and tells of all that decides them beside the model, the stream and the size.
    """
    cells = [
        Cell(f"{kind}-{kept_name(model, stream, size)}", compute, (model, stream, activations, size, folder, *more))
        for stream, model in pairs
    ]
    for layer in {cell.arguments[1].layer for cell in missing(cells, folder)}:
        activations(layer, n_tokens(size))  # once, before workers ask for it all together
    return finish_cells(cells, folder, title, workers)


def n_tokens(size: Size) -> int:
    """Activations of one layer that a table needs."""
    return size.tokens or size.held_out + size.steps * BATCH_SIZE


def reproduce_sinks(
    activations: Activations, folder: Path, size: Size = FULL, workers: int = 1
) -> list[dict[str, Any]]:
    """The table ``sinks``: each of `SINKS` put into the activations, with the cells of each in a folder of its own."""
    results = []
    for sinks in SINKS:
        own = folder / file_name(f"sinks-{sinks.name}")
        cells = reproduce("sinks", WithSinks(activations, sinks), own, size, workers)
        results += [{**cell, "sinks": sinks.name} for cell in cells]
    return results


def measure(model: str, stream: Stream, activations: Activations, size: Size, folder: Path) -> dict[str, Any]:
    """Train one model on all but the last ``size.held_out`` activations of a stream and measure it on those."""
    sae = trained(model, stream, activations, size, folder)
    held_out = activations(stream.layer, n_tokens(size))[-size.held_out :].split(BATCH_SIZE)
    levels, forest = stack_of(sae)
    if model == MATRYOSHKA:
        assert not isinstance(sae, list)
        result = evaluate_groups(*matryoshka_levels(sae), forest, held_out)
    else:
        result = evaluate_forest(levels, forest, held_out)
    return {**asdict(stream), "steps": size.steps, "model": model, **result.to_dict()}


def trained(
    model: str, stream: Stream, activations: Activations, size: Size, folder: Path
) -> SAE[Any] | list[SAE[Any]]:
    """A model trained on a stream, as loaded from the folder where it is kept; trained now if it is not there.

    Returns:
        An SAE, or one for each level where they are trained by themselves.
    """
    path = folder / kept_name(model, stream, size)
    name, (model, optimizer) = model, model_and_optimizer(model, size.steps)
    if not path.exists():
        x, at_first = activations(stream.layer, n_tokens(size)), None
        seen = x[: -size.held_out]
        if name.endswith(ORDINARY):
            seen = seen[usual(seen[:SEEN_FIRST]).holds(seen)]
        coordinates = Coordinates.of(seen) if CENTRED in name else None
        if coordinates:
            seen = coordinates.into(seen)
        if isinstance(activations, WithSinks):
            at_first = activations.before_sinks(stream.layer, n_tokens(size))
        torch.manual_seed(stream.seed)
        saes: dict[int | None, TrainingSAE[Any]]
        if model in NORMALIZED_BATCH_TOPK:
            saes = dict(enumerate(new_batch_topk(model, stream.target_l0, x.shape[1])))
        elif model == SAELENS_JUMPRELU:
            goals = widths_and_targets(stream.target_l0)
            saes = {level: new_jumprelu(width, l0, x.shape[1]) for level, (width, l0) in enumerate(goals)}
        else:
            saes = {None: new_sae(model, stream.target_l0, x.shape[1])}
        for sae in saes.values():
            train(sae, seen, size.steps, stream.seed, at_first, optimizer)
            if coordinates:
                coordinates.fold(sae)
        with folder_written_whole(path) as new:
            for level, sae in saes.items():
                sae.save_inference_model(new if level is None else new / str(level))
    if model in LEVEL_BY_LEVEL:
        return [SAE.load_from_disk(of_level) for of_level in sorted(path.iterdir())]
    return SAE.load_from_disk(path)


def kept_name(model: str, stream: Stream, size: Size) -> str:
    """Of a trained model's folder: all that decides it, but where the activations come from."""
    settings = settings_of(model, stream.target_l0, size.steps)
    return file_name(named_by(f"{stream.name}-{size.name}-{model}", settings))
