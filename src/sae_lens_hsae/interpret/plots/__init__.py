"""Plotly figures of training, features and forests.

A figure shows itself in a notebook; ``figure.write_html(path)`` stores it, and with the extra ``plots``
``figure.write_image(path)`` stores a picture.
"""

from sae_lens_hsae.interpret.plots.distributions import activation_distributions
from sae_lens_hsae.interpret.plots.forest import edge_quality, forest_flow, tree_picture
from sae_lens_hsae.interpret.plots.siblings import SiblingDistances, sibling_distances, sibling_map
from sae_lens_hsae.interpret.plots.training import sparsity_curves, training_curves

__all__ = [
    "SiblingDistances",
    "activation_distributions",
    "edge_quality",
    "forest_flow",
    "sibling_distances",
    "sibling_map",
    "sparsity_curves",
    "training_curves",
    "tree_picture",
]
