"""Choosing along the forest: from a coarse selection down into its children, or to the subtrees' leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sae_lens_hsae.forest.descent import candidates_below
from sae_lens_hsae.interpret.steering.examples import Examples
from sae_lens_hsae.interpret.steering.selection import Selection

Selector = Callable[..., Selection]


def descend(selector: Selector, examples: Examples, level: int = -1, **options: Any) -> Selection:
    """Select level by level from the coarsest, each time only among the children of what was selected above.

    Features without a parent are among the candidates everywhere, since nothing coarser stands for them.

    Args:
        selector: `sta`, `spare`, `srps`, `sae_rsv` or `difference_of_means`.
        examples: from `examples_of`.
        level: where to end.
        options: of the selector.

    Raises:
        IndexError: if there is no such level.
    """
    found = selector(examples, 0, **options)
    for below in range(1, examples.forest.levels.number(level) + 1):
        own = examples.of_level(below)
        above = torch.zeros(examples.forest.n_features, dtype=torch.bool)
        above[list(found.features)] = True
        candidates = own[candidates_below(examples.forest, below, above)]
        if not len(candidates):
            found = replace(found, features=(), weights=(), level=below, rest=None)
            continue
        found = selector(examples, below, candidates, **options)
    return found
