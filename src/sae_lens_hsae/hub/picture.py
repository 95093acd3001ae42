"""A still picture of a forest: its largest trees from above, as SVG."""

from __future__ import annotations

from bisect import bisect_right

from sae_lens_hsae.forest import FeatureForest

WIDTH = 960
ROW = 44
MAX_FEATURES = 2000
"""Features drawn at most, so that the file stays small."""

COLORS = ("#2f4b7c", "#4f7cac", "#7fb2c4", "#b3d6cf", "#dcecd9")
"""Of the levels, coarse to fine; finer levels share the last."""


def forest_svg(forest: FeatureForest) -> str:
    """Trees side by side, the largest first, each feature above its children; a bar's width is its number of leaves.

    Only trees of roots that have children are drawn, and only as many as fit into `MAX_FEATURES`.
    """
    offsets = forest.levels.offsets
    trees = sorted((forest.subtree(root) for root in forest.roots().tolist()), key=len, reverse=True)
    drawn, n_features = list[list[int]](), 0
    for tree in trees:
        if len(tree) == 1 or (drawn and n_features + len(tree) > MAX_FEATURES):
            break
        drawn.append(tree)
        n_features += len(tree)
    leaves: dict[int, int] = {}
    for tree in drawn:
        for feature in reversed(tree):  # children come after their parents
            leaves[feature] = sum(leaves[child] for child in forest.children(feature)) or 1
    scale = WIDTH / (sum(leaves[tree[0]] for tree in drawn) or 1)
    bars, x_of, next_x = list[str](), dict[int, float](), 0.0
    for tree in drawn:
        x_of[tree[0]] = next_x
        next_x += leaves[tree[0]] * scale
        for feature in tree:
            level = bisect_right(offsets[1:], feature)
            x = x_of[feature]
            bars.append(
                f'<rect x="{x:.2f}" y="{level * ROW}" width="{leaves[feature] * scale:.2f}" height="{ROW - 2}" '
                f'fill="{COLORS[min(level, len(COLORS) - 1)]}"><title>{level}/{feature - offsets[level]}</title></rect>'
            )
            for child in forest.children(feature):
                x_of[child] = x
                x += leaves[child] * scale
    height = ROW * len(forest.levels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'stroke="#fff" stroke-width="0.5" role="img" aria-label="the {len(drawn)} largest trees">'
        + "".join(bars)
        + "</svg>\n"
    )
