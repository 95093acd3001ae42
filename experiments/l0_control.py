"""How close every level's L0 stays to its target over the last third of a training, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from experiments.kept_names import named_by
from experiments.models import HSAE, new_sae, train
from experiments.paper_tables import TABLES, Activations, Size, Stream, kept_name, n_tokens
from experiments.planted import training as planted
from experiments.planted.trees import STANDARD
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

PLANTED = "planted trees"


def reproduce_l0(table: str, activations: Activations, folder: Path, size: Size) -> list[dict[str, Any]]:
    """One row for each place of a table of `paper_tables`, and one for planted trees beside ``main``.

    Args:
        table: ``main`` or ``gemma``.
        activations: to train on.
        folder: where finished cells are kept.
        size: of training; one seed.
    """
    streams = [Stream(*place, 0) for place in TABLES[table].places[: size.places]]
    cells = [Cell(f"l0-{kept_name(HSAE, each, size)}", on_stream, (each, activations, size)) for each in streams]
    if table == "main":
        steps = STANDARD.n_steps if size.places is None else size.steps
        name = named_by(f"l0-planted-{steps}steps", planted.settings_of(STANDARD, {HSAE: {}}))
        cells.append(Cell(name, on_planted_trees, (steps,)))
    return [row(**cell) for cell in finish_cells(cells, folder, "Table l0")]


def on_stream(stream: Stream, activations: Activations, size: Size) -> dict[str, Any]:
    """What L0 does on a stream that `paper_tables` trains on, with its optimizer."""
    x = activations(stream.layer, n_tokens(size))[: -size.held_out]
    torch.manual_seed(stream.seed)
    sae = new_sae(HSAE, stream.target_l0, x.shape[1])
    assert isinstance(sae, HierarchicalTrainingSAE)
    l0 = recorded(sae, lambda: train(sae, x, size.steps, stream.seed))
    return {"activations": f"layer {stream.layer}", "target": sae.cfg.target_l0_per_level, "l0": l0}


def on_planted_trees(n_steps: int) -> dict[str, Any]:
    """The same on the standard setting of planted trees."""
    trees = STANDARD.plant(0)
    saes = planted.new_saes(trees, {HSAE: {}})
    sae = saes[HSAE]
    assert isinstance(sae, HierarchicalTrainingSAE)
    l0 = recorded(sae, lambda: planted.train(trees, saes, n_steps))
    return {"activations": PLANTED, "target": sae.cfg.target_l0_per_level, "l0": l0}


def recorded(sae: HierarchicalTrainingSAE, training: Callable[[], object]) -> list[list[float]]:
    """The running mean of every level's L0 (`SparsityControl`) after each step of a training, (steps, L)."""
    seen: list[list[float]] = []
    follow = sae.sparsity.follow

    def watched(*args: Any) -> None:
        follow(*args)
        seen.append(sae.sparsity.l0_ema.tolist())

    with patch.object(sae.sparsity, "follow", watched):
        training()
    return seen


def row(activations: str, target: list[float], l0: list[list[float]]) -> dict[str, Any]:
    """A line of the table; deviations as shares of the target, of each level."""
    late, aim = torch.tensor(l0[-(len(l0) // 3) :]), torch.tensor(target)
    off = (late / aim - 1).abs()
    return {
        "activations": activations,
        "target": " ".join(f"{each:.2f}" for each in target),
        "off at the end": _shares(off[-1]),
        "farthest off in the last third": _shares(off.amax(0)),
    }


def _shares(off: torch.Tensor) -> str:
    return " ".join(f"{share:.1%}" for share in off.tolist())
