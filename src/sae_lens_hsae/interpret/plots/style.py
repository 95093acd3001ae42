"""What all figures share: colours from coarse to fine, and the layout."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb, sample_colorscale, unlabel_rgb

COLOUR_SCALE = "Viridis"


def level_colours(n_levels: int) -> list[str]:
    """One colour per level, coarse to fine; the scale's light end, which white paper swallows, is left out."""
    return [str(c) for c in sample_colorscale(COLOUR_SCALE, [0.8 * i / max(1, n_levels - 1) for i in range(n_levels)])]


def translucent(colour: str, alpha: float) -> str:
    """A colour, ``rgb(r, g, b)`` or ``#rrggbb``, with transparency."""
    red, green, blue = hex_to_rgb(colour) if colour.startswith("#") else unlabel_rgb(colour)
    return f"rgba({red:g}, {green:g}, {blue:g}, {alpha})"


def plain(text: str) -> str:
    """Text as it stands: Plotly reads HTML tags in labels, and names may be text that anyone has written."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def finished(figure: go.Figure, title: str, height: int) -> go.Figure:
    """The figure with the common layout."""
    return figure.update_layout(title=title, height=height, template="plotly_white", margin={"t": 90, "b": 60})
