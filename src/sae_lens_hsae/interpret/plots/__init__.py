"""Plotly figures of forests, and how far apart siblings are.

A figure shows itself in a notebook; ``figure.write_html(path)`` stores it, and with the extra ``plots``
``figure.write_image(path)`` stores a picture.
"""

from sae_lens_hsae.interpret.plots.forest import edge_quality, forest_flow, tree_picture
from sae_lens_hsae.interpret.plots.siblings import SiblingDistances, sibling_distances

__all__ = ["SiblingDistances", "edge_quality", "forest_flow", "sibling_distances", "tree_picture"]
