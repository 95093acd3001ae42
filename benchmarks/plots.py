"""Time and memory of a step against the widths, as a page that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLOURS = ("#0b6e99", "#c4561e", "#6b6b6b")


def write_plots(step_growth: dict[str, Any], folder: Path) -> None:
    """Write ``growth.html``, with plotly's own script beside it.

    Args:
        step_growth: from `growth.step_growth`.
        folder: exists.
    """
    figure = make_subplots(rows=1, cols=2, subplot_titles=("time per step", "peak memory"))
    rows = step_growth["sizes"]
    features = [row["size"]["n_features"] for row in rows]
    for name, colour in zip(step_growth["fits"], COLOURS, strict=True):
        own = [row["contestants"][name] for row in rows]
        ms = [[1000 * result["seconds"][which] for result in own] for which in ("median", "least", "most")]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [most - middle for middle, _, most in zip(*ms, strict=True)],
            "arrayminus": [middle - least for middle, least, _ in zip(*ms, strict=True)],
        }
        line = {"color": colour}
        time = go.Scatter(x=features, y=ms[0], error_y=bars, name=name, legendgroup=name, line=line)
        figure.add_trace(time, row=1, col=1)
        mb = [None if result["peak_bytes"] is None else result["peak_bytes"] / 1e6 for result in own]
        memory = go.Scatter(x=features, y=mb, name=name, legendgroup=name, line=line, showlegend=False)
        figure.add_trace(memory, row=1, col=2)
    figure.update_xaxes(title_text="features of all levels", rangemode="tozero")
    figure.update_yaxes(title_text="ms", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="MB", rangemode="tozero", row=1, col=2)
    figure.update_layout(template="plotly_white", legend={"orientation": "h", "y": -0.2})
    unfinished = folder / "growth.html.unfinished"
    figure.write_html(unfinished, include_plotlyjs="directory")
    unfinished.replace(folder / "growth.html")
