"""A forest as a notebook shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_lens_hsae.forest import FeatureForest

TREES_SHOWN = 5
FEATURES_SHOWN = 200


def forest_html(forest: FeatureForest) -> str:
    """A table of the levels, and the largest trees to unfold; of a large tree the first features, breadth-first."""
    n_children = forest.n_children
    unassigned = forest.unassigned()
    header = "".join(f"<th>{name}</th>" for name in ("level", "features", "unassigned", "parents", "most children"))
    rows = []
    for level, own in enumerate(forest.levels):
        below = n_children[own]
        alone = ((unassigned >= own.start) & (unassigned < own.stop)).sum()
        cells = (level, len(below), int(alone), int((below > 0).sum()), int(below.max()))
        rows.append("<tr>" + "".join(f"<td>{cell:,}</td>" for cell in cells) + "</tr>")
    largest = sorted(((len(forest.subtree(root)), -root) for root in forest.roots().tolist()), reverse=True)
    shown = [(-root, size) for size, root in largest[:TREES_SHOWN] if size > 1]
    trees = "".join(
        f"<details><summary>tree of {forest.levels.name(root)}, {size:,} features</summary>"
        f"{_tree(forest, root)}</details>"
        for root, size in shown
    )
    return (
        f"<div><b>FeatureForest</b> of {forest.n_features:,} features, depth {forest.depth}"
        f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>{trees}</div>"
    )


def _tree(forest: FeatureForest, root: int) -> str:
    features = forest.subtree(root)
    shown = set(features[:FEATURES_SHOWN])
    more = f"<p>… {len(features) - len(shown):,} more</p>" if len(features) > len(shown) else ""
    return "".join(_items(forest, root, shown)) + more


def _items(forest: FeatureForest, feature: int, shown: set[int]) -> Iterator[str]:
    yield f"<ul><li>{forest.levels.name(feature)}"
    for child in forest.children(feature):
        if child in shown:
            yield from _items(forest, child, shown)
    yield "</li></ul>"
