"""Comparison tables as pictures: measures by boundary, and what a hierarchy costs against what it brings."""

from __future__ import annotations

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
BASELINE = "post hoc"


def figures_of(table: ComparisonTable) -> dict[str, go.Figure]:
    """The figures that a table has what it takes for, by a name for their files."""
    measures, models = set(table.values["measure"]), set(table.values["model"])
    figures = {}
    if set(PANELS) <= measures:
        figures["boundaries"] = boundary_bars(table)
        if BASELINE in models:
            figures["cost"] = trade_off(table)
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


def trade_off(table: ComparisonTable) -> go.Figure:
    """Variance explained, against independent SAEs, over Hamming: both means, of levels and of boundaries.

    Raises:
        ValueError: if the table has no independent SAEs to compare with.
    """
    values = _first_place(table)
    mean, spread = (
        values.pivot_table(index="model", columns="measure", values=name, sort=False) for name in ("mean", "spread")
    )
    if BASELINE not in mean.index:
        raise ValueError(f"the table has no model {BASELINE!r}, which costs are measured against")
    figure = go.Figure(
        go.Scatter(
            x=mean["hamming"],
            y=(mean["variance_explained"] - mean.loc[BASELINE, "variance_explained"]).tolist(),
            error_x={"array": spread["hamming"]},
            error_y={"array": spread["variance_explained"]},
            text=mean.index,
            mode="markers+text",
            textposition="top right",
            cliponaxis=False,
        )
    )
    figure.update_xaxes(title_text="Hamming, mean over boundaries (less is better)")
    figure.update_yaxes(title_text="variance explained, mean over levels, minus independent SAEs'")
    return finished(figure, "What a hierarchy costs, and what it brings", 520)


def _first_place(table: ComparisonTable) -> pandas.DataFrame:
    """The rows of one layer and target: those of the first in the table."""
    values = table.values
    first = {column: values[column].tolist()[0] for column in table.by[:-1]}
    return values.loc[(values[list(first)] == pandas.Series(first)).all(axis=1)]
