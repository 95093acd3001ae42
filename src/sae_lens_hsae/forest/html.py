"""A forest as a notebook shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from sae_lens_hsae.forest.levels import NO_PARENT, Levels

TREES_SHOWN = 5
FEATURES_SHOWN = 200


def levels_html(levels: Levels, parents: torch.Tensor) -> str:
    """A table of the levels: features, unassigned ones, parents, and the most children of one."""
    n_children = torch.bincount(parents[parents != NO_PARENT], minlength=len(parents))
    header = "".join(f"<th>{name}</th>" for name in ("level", "features", "unassigned", "parents", "most children"))
    rows = []
    for level, own in enumerate(levels):
        below = n_children[own]
        unassigned = int((parents[own] == NO_PARENT).sum()) if level else 0
        cells = (level, len(below), unassigned, int((below > 0).sum()), int(below.max()))
        rows.append("<tr>" + "".join(f"<td>{cell:,}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def tree_html(features: list[int], children: Callable[[int], list[int]], name: Callable[[int], str]) -> str:
    """A tree to unfold; of a large one the first features.

    Args:
        features: of the tree, breadth-first.
        children: of a feature.
        name: of a feature.
    """
    shown = set(features[:FEATURES_SHOWN])

    def items(feature: int) -> Iterator[str]:
        yield f"<ul><li>{name(feature)}"
        for child in children(feature):
            if child in shown:
                yield from items(child)
        yield "</li></ul>"

    more = f"<p>… {len(features) - len(shown):,} more</p>" if len(features) > len(shown) else ""
    summary = f"<summary>tree of {name(features[0])}, {len(features):,} features</summary>"
    return f"<details>{summary}{''.join(items(features[0]))}{more}</details>"
