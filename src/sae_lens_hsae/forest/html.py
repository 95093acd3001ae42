"""A forest as a notebook shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from sae_lens_hsae.forest.levels import NO_PARENT, Levels

TREES_SHOWN = 5
FEATURES_SHOWN = 200


def level_rows(levels: Levels, parents: torch.Tensor) -> list[list[str]]:
    """A table of what a parent table (n_features,) says of each level; the first row is the header."""
    rows = [["level", "features", "unassigned", "with children", "children each", "most children"]]
    n_children = torch.bincount(parents[parents != NO_PARENT], minlength=len(parents))
    for level, own in enumerate(levels):
        below = n_children[own]
        n_parents, unassigned = int((below > 0).sum()), int((parents[own] == NO_PARENT).sum()) if level else 0
        mean = f"{int(below.sum()) / n_parents:.2f}" if n_parents else "–"
        rows.append([str(level), *(f"{n:,}" for n in (len(below), unassigned, n_parents)), mean, f"{below.max():,}"])
    return rows


def levels_html(levels: Levels, parents: torch.Tensor) -> str:
    tags = ["th", *["td"] * len(levels)]
    rows = zip(tags, level_rows(levels, parents), strict=True)
    head, *body = ("".join(f"<{tag}>{cell}</{tag}>" for cell in row) for tag, row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody><tr>{'</tr><tr>'.join(body)}</tr></tbody></table>"


def tree_html(features: list[int], children: Callable[[int], list[int]], name: Callable[[int], str]) -> str:
    """A tree to unfold, of its features breadth-first; of a large one the first features."""
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
