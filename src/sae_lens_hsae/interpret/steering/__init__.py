"""Pushing, scaling, clamping and removing features of any level while a language model runs.

What to push, `sta` and `difference_of_means` choose from two sets of texts; `descend` has them choose along the forest,
`steer_by` acts, and `continued` writes text for a look at what it does.
"""

from sae_lens_hsae.interpret.steering.edits import Edit, ablate, add, clamp, scale
from sae_lens_hsae.interpret.steering.effects import Effect, effect_of
from sae_lens_hsae.interpret.steering.examples import Examples, examples_of
from sae_lens_hsae.interpret.steering.selection import Selection, descend, steer_by
from sae_lens_hsae.interpret.steering.selectors import difference_of_means, sta
from sae_lens_hsae.interpret.steering.steer import steer
from sae_lens_hsae.interpret.steering.writing import continued

METHODS = {"sta": sta, "means": difference_of_means}
"""The selectors by name."""

__all__ = [
    "METHODS",
    "Edit",
    "Effect",
    "Examples",
    "Selection",
    "ablate",
    "add",
    "clamp",
    "continued",
    "descend",
    "difference_of_means",
    "effect_of",
    "examples_of",
    "scale",
    "sta",
    "steer",
    "steer_by",
]
