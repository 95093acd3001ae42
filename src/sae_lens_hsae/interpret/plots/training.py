"""Curves of a training run, per level, from what it logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_lens_hsae.interpret.plots.style import finished, level_colours, translucent

History = pd.DataFrame | Sequence[Mapping[str, Any]]
COLUMNS = 3
STEP, SAMPLES = "_step", "details/n_training_samples"
PER_LEVEL = {
    "explained_variance": "Variance explained",
    "mse": "Squared error",
    "dead_features": "Dead features",
    "unassigned_share": "Share of unassigned features",
}
OF_THE_FOREST = {
    "losses/structural_loss": "Structural loss (ρ Σ L_PC)",
    "metrics/reparented_share": "Share of features that changed parent at the last update",
}


def training_curves(history: History) -> go.Figure:
    """Variance explained, error, dead and unassigned features of every level, structural loss, changes of the forest.

    Args:
        history: one row per logged step, with the names that W&B shows: ``wandb.Api().run(…).history()``, or any
            sequence of such rows. The x axis is ``_step``, else ``details/n_training_samples``, else the row's number.

    Raises:
        ValueError: if it holds no metric of a level.
    """
    table = _table(history)
    n_levels = _n_levels(table)
    panels = [*PER_LEVEL.values(), *OF_THE_FOREST.values()]
    figure = make_subplots(rows=2, cols=COLUMNS, subplot_titles=panels, vertical_spacing=0.15)
    for panel, name in enumerate(PER_LEVEL):
        for level, colour in enumerate(level_colours(n_levels)):
            _add(figure, panel, table, f"metrics/level_{level}_{name}", f"level {level}", colour, legend=panel == 0)
    for panel, name in enumerate(OF_THE_FOREST, len(PER_LEVEL)):
        _add(figure, panel, table, name, "all levels", "rgb(80, 80, 80)", legend=False)
    figure.update_xaxes(title_text=_x(table)[1], row=2)
    return finished(figure, "Training, level by level", 640)


def sparsity_curves(history: History, target_l0: float | Sequence[float]) -> go.Figure:
    """L0 of every level with its running mean against the target, and the coefficient λ that steers it (App. A.2).

    Args:
        history: as for `training_curves`.
        target_l0: ``cfg.target_l0_per_level``: one ``cfg.target_l0`` is the finest level's, and the others have less.

    Raises:
        ValueError: if the history holds no metric of a level, or there is not one target per level.
    """
    table = _table(history)
    n_levels = _n_levels(table)
    targets = list(target_l0) if isinstance(target_l0, Sequence) else [target_l0]
    if len(targets) != n_levels:
        raise ValueError(
            f"target_l0={targets} has {len(targets)} numbers for {n_levels} levels; give cfg.target_l0_per_level"
        )
    figure = make_subplots(rows=1, cols=2, subplot_titles=["L0: batch, running mean, target", "λ"])
    x = _x(table)[0]
    for level, (colour, target) in enumerate(zip(level_colours(n_levels), targets, strict=True)):
        name = f"level {level}"
        _add(figure, 0, table, f"metrics/level_{level}_l0", name, translucent(colour, 0.35), legend=False)
        _add(figure, 0, table, f"metrics/level_{level}_l0_ema", name, colour, legend=True)
        ends = go.Scatter(
            x=[x.min(), x.max()], y=[target] * 2, mode="lines", line={"dash": "dot", "color": colour},
            showlegend=False, hoverinfo="skip", legendgroup=name,
        )  # fmt: skip
        figure.add_trace(ends, row=1, col=1)
        _add(figure, 1, table, f"metrics/level_{level}_l0_coefficient", name, colour, legend=False)
    figure.update_yaxes(type="log")
    figure.update_xaxes(title_text=_x(table)[1])
    return finished(figure, "Sparsity control", 420)


def _table(history: History) -> pd.DataFrame:
    table = history if isinstance(history, pd.DataFrame) else pd.DataFrame(list(history))
    numbers = [name for name in table.columns if name in (STEP, SAMPLES, *OF_THE_FOREST) or "/level_" in name]
    # W&B spells NaN as a string.
    return pd.DataFrame({name: pd.to_numeric(table[name], errors="coerce") for name in numbers})


def _n_levels(table: pd.DataFrame) -> int:
    level = 0
    while f"metrics/level_{level}_l0" in table.columns:
        level += 1
    if not level:
        raise ValueError(
            "history has no column 'metrics/level_0_l0'; give the rows that training an 'hsae' SAE with "
            "log_to_wandb=True logs, under the names that W&B shows"
        )
    return level


def _x(table: pd.DataFrame) -> tuple[pd.Series, str]:
    for name, title in ((STEP, "step"), (SAMPLES, "activations")):
        if name in table.columns:
            return table[name], title
    return pd.Series(table.index, index=table.index), "logged step"


def _add(
    figure: go.Figure, panel: int, table: pd.DataFrame, column: str, name: str, colour: str, *, legend: bool
) -> None:
    if column not in table.columns:
        return
    # A row of another kind, such as an evaluation's, leaves the column empty.
    kept = table.dropna(subset=[column])
    line = go.Scatter(x=_x(kept)[0], y=kept[column], mode="lines", name=name, legendgroup=name)
    row, col = panel // COLUMNS + 1, panel % COLUMNS + 1
    figure.add_trace(line.update(line={"color": colour}, showlegend=legend), row=row, col=col)
