"""Comparison tables as pictures: measures by boundary, variance explained by level, and curves of steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from experiments.tables import ComparisonTable
from sae_lens_hsae.interpret.plots.style import finished

PANELS = {
    "hamming": "Hamming",
    "p_parent_given_child": "P(parent | child)",
    "p_child_given_parent": "P(child | parent)",
}


TICKS = (5, 7, 10, 15, 20, 30, 50, 70, 100, 200)
"""Of perplexities."""


def figures_of(table: ComparisonTable) -> dict[str, go.Figure]:
    """The figures that a table has what it takes for, by a name for their files."""
    figures = {}
    if set(PANELS) <= set(table.values["measure"]):
        figures["boundaries"] = boundary_bars(table)
        figures["levels"] = variance_by_level(table)
    return figures


def boundary_bars(table: ComparisonTable) -> go.Figure:
    """Hamming and both conditional probabilities of every model, by level boundary; whiskers are spreads over seeds."""
    values = _first_place(table)
    models = list(dict.fromkeys(values["model"]))
    figure = make_subplots(rows=1, cols=len(PANELS), subplot_titles=list(PANELS.values()))
    for column, measure in enumerate(PANELS, 1):
        for model, colour in zip(models, qualitative.Safe * len(models), strict=False):
            cells = values[(values["model"] == model) & (values["measure"] == measure)]
            figure.add_bar(
                x=[f"{place} → {place + 1}" for place in cells["place"]],
                y=cells["mean"].tolist(),
                error_y={"array": cells["spread"]},
                name=model,
                legendgroup=model,
                showlegend=column == 1,
                marker_color=colour,
                row=1,
                col=column,
            )
    return finished(figure, "Agreement of parents and children, by level boundary", 420)


def variance_by_level(table: ComparisonTable) -> go.Figure:
    """Variance explained by each level of every model, of ordinary tokens where the table tells them apart."""
    values = _first_place(table)
    own = values[(values["measure"] == "variance_explained_ordinary") & values["mean"].notna()]
    of_ordinary = not own.empty
    if not of_ordinary:
        own = values[values["measure"] == "variance_explained"]
    figure = go.Figure()
    for model, colour in zip(dict.fromkeys(own["model"]), qualitative.Safe * len(own), strict=False):
        cells = own[own["model"] == model]
        figure.add_scatter(
            x=[f"level {place}" for place in cells["place"]],
            y=cells["mean"].tolist(),
            error_y={"array": cells["spread"]},
            name=model,
            line_color=colour,
        )
    figure.update_yaxes(title_text="variance explained" + " of ordinary tokens" * of_ordinary)
    where = ", ".join(f"{column} {values[column].iloc[0]}" for column in table.by[:-1])
    return finished(figure, f"Variance explained by levels, coarse to fine ({where})", 480)


def steering_curves(rows: Sequence[Mapping[str, Any]], strengths: Sequence[float]) -> go.Figure:
    """Success against perplexity over the strength of the push, by how features are chosen: means over all else.

    Args:
        rows: of `steering.steering_rows`; those without features chosen are not steered, where every curve begins.
        strengths: of the pushes, ascending.
    """
    frame: Any = pandas.DataFrame(rows)
    chosen = frame["features chosen"]
    means = frame.groupby(chosen, sort=False).mean(numeric_only=True)
    start, figure = means.loc[""], go.Figure()
    for way, colour in zip(means.index.drop(""), qualitative.Safe, strict=False):
        points = [(start, strengths[0]), *((means.loc[way], strength) for strength in strengths)]
        figure.add_scatter(
            x=[row[f"perplexity at {strength:g}"] for row, strength in points],
            y=[row[f"success at {strength:g}"] for row, strength in points],
            text=["not steered", *(f"{strength:g} of the median distance" for strength in strengths)],
            mode="lines+markers",
            name=way,
            line_color=colour,
        )
    figure.update_xaxes(
        title_text="perplexity of what is written, under the model as it is", type="log", tickvals=TICKS
    )
    figure.update_yaxes(title_text="success")
    return finished(figure, "Steering, from no push to the strongest", 480)


def _first_place(table: ComparisonTable) -> pandas.DataFrame:
    """The rows of one layer and target: those of the first in the table."""
    values = table.values
    first = {column: values[column].tolist()[0] for column in table.by[:-1]}
    return values.loc[(values[list(first)] == pandas.Series(first)).all(axis=1)]
