"""The forest itself: one tree, how levels flow into each other, how good the edges are."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from sae_lens_hsae.forest import NO_PARENT, Concepts, FeatureForest
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.labels.files import Labels, by_feature
from sae_lens_hsae.interpret.plots.style import COLOUR_SCALE, finished, level_colours, plain, translucent

REST = "#c4c9d0"
"""Of what belongs to no group."""
UNASSIGNED = "#8a5a44"
MIN_OUTLINED = 1 / 200
"""Share of a tree's picture; a narrower box would be nothing but outline."""
MIN_NAMED = 1 / 120
"""Share of a flow's height; the names of lower nodes would lie on each other."""
BIN = 0.05


def tree_picture(forest: FeatureForest, root: int | str, names: Labels | None = None) -> go.Figure:
    """A feature and all below it, level under level; a click enters a part of it.

    Args:
        root: flat index or name of the tree's topmost feature; any feature will do.
        names: text for some of its features, by flat index or name.

    Raises:
        IndexError: if there is no such feature.
        ValueError: if one of ``names`` is of a feature that does not exist.
    """
    own = by_feature(names, forest.index)
    features = forest.subtree(root)
    levels = forest.levels.level_of(torch.tensor(features)).tolist()
    colours = level_colours(len(forest.levels))
    ids = [forest.levels.name(feature) for feature in features]
    labels = [f"{id_}  {plain(own[f])}" if f in own else id_ for id_, f in zip(ids, features, strict=True)]
    parents = [""] + [ids[features.index(int(forest.parents[feature]))] for feature in features[1:]]
    leaves: dict[int, int] = {}
    for feature in reversed(features):  # children come after their parents
        leaves[feature] = sum(leaves[child] for child in forest.children(feature)) or 1
    outlined = [leaves[feature] >= MIN_OUTLINED * leaves[features[0]] for feature in features]
    picture = go.Icicle(
        ids=ids,
        labels=labels,
        parents=parents,
        marker={"colors": [colours[level] for level in levels], "line": {"width": [int(each) for each in outlined]}},
        leaf={"opacity": 1},
        textfont={"color": ["#ffffff" if level < len(colours) / 2 else "#000000" for level in levels]},
        tiling={"orientation": "v"},
        hovertemplate="%{label}<extra></extra>",
    )
    return finished(go.Figure(picture), f"Tree of {ids[0]}: {len(features)} features", 420)


def forest_flow(forest: FeatureForest, n_trees: int = 10) -> go.Figure:
    """How the features of each level spread over the trees of the level above.

    Every level is divided among the ``n_trees`` largest trees, the other trees, what stands under unassigned features
    and, where it begins, what is unassigned. A band between two levels is as wide as the number of children in it.

    Args:
        n_trees: trees shown by themselves, at least 0.
    """
    tops = Concepts(forest, torch.zeros(len(forest), dtype=torch.bool)).top_of_tree
    sizes = torch.bincount(tops, minlength=forest.n_features)[: forest.level_widths[0]]
    largest = sizes.argsort(descending=True, stable=True)[:n_trees].tolist()
    other, adrift = len(largest), len(largest) + 1
    group = torch.full((forest.n_features,), other)
    group[tops >= forest.level_widths[0]] = adrift
    for i, root in enumerate(largest):
        group[tops == root] = i

    n_groups = adrift + 1
    kinds = [f"tree of {forest.levels.name(root)}" for root in largest]
    kinds += [f"the {forest.level_widths[0] - len(largest)} other trees", "under unassigned features"]
    colours = [str(c) for c in sample_colorscale(COLOUR_SCALE, [i / max(1, other - 1) for i in range(other)])]
    colours += [REST, UNASSIGNED]
    counts = torch.stack([torch.bincount(group[own], minlength=n_groups) for own in forest.levels]).flatten().tolist()
    flows = torch.zeros(len(forest.levels) + 1, n_groups, dtype=torch.int64)  # into each level, and out of the last
    for level, (_, below) in enumerate(forest.levels.boundaries, 1):
        flows[level] = torch.bincount(group[below][forest.parents[below] != NO_PARENT], minlength=n_groups)
    size = flows[:-1].maximum(flows[1:])  # what flows in or out, whichever is more
    total = int(size.sum(1).max())
    # Left to itself Plotly puts whatever nothing flows into at the very left, whichever level it belongs to.
    y = (size.cumsum(1) - size.double() / 2) / max(1, total)
    x = torch.arange(len(size)).double()[:, None].expand_as(y) / max(1, len(size) - 1)
    used = size.flatten().nonzero().flatten()
    source = flows[1:-1].flatten().nonzero().flatten()
    # Each group has its name once, where it has most room.
    is_named = torch.zeros_like(size, dtype=torch.bool).scatter_(0, size.argmax(0)[None], True)
    named = (is_named & (size >= MIN_NAMED * total)).flatten().tolist()
    nodes = used.tolist()
    sankey = go.Sankey(
        arrangement="snap",
        node={
            "label": [kinds[node % n_groups] if named[node] else "" for node in nodes],
            # Exactly 0 counts as not given.
            "x": x.flatten()[used].clamp(1e-3, 1 - 1e-3).tolist(),
            "y": y.flatten()[used].clamp(1e-3, 1 - 1e-3).tolist(),
            "customdata": [
                f"level {node // n_groups}, {kinds[node % n_groups]}: {counts[node]} features" for node in nodes
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
            "color": [colours[node % n_groups] for node in nodes],
            "pad": 8,
        },
        link={
            "source": torch.searchsorted(used, source).tolist(),
            "target": torch.searchsorted(used, source + n_groups).tolist(),
            "value": flows[1:-1].flatten()[source].tolist(),
            "color": [translucent(colours[node % n_groups], 0.4) for node in source.tolist()],
            "hovertemplate": "%{value} children<extra></extra>",
        },
    )
    figure = go.Figure(sankey)
    for level in range(len(forest.levels)):
        at = level / (len(forest.levels) - 1) if level else 0
        figure.add_annotation(text=f"level {level}", x=at, y=1.07, xref="paper", yref="paper", showarrow=False)
    per_level = " → ".join(f"{width:,}" for width in forest.level_widths)
    n_unassigned = len(forest.unassigned())
    title = f"From level to level: {per_level} features, {n_unassigned:,} of them unassigned"
    return finished(figure, title, 560)


def edge_quality(dashboards: Dashboards) -> go.Figure:
    """Histograms over the edges of each level boundary: P(parent|child), P(child|parent) and the decoder cosine.

    Raises:
        ValueError: if the forest has no edge.
    """
    levels = dashboards.forest.levels
    if not (dashboards.parents >= 0).any():
        raise ValueError("the forest has no edge, so that there is nothing to show")
    measures = {
        "P(parent | child)": (dashboards.parent_given_child, 0),
        "P(child | parent)": (dashboards.child_given_parent, 0),
        "Cosine of parent and child": (dashboards.parent_cosine, -1),
    }
    figure = make_subplots(rows=1, cols=3, subplot_titles=list(measures))
    colours = level_colours(len(levels))
    for column, (values, least) in enumerate(measures.values(), 1):
        edges_of_bins = np.linspace(least, 1, round((1 - least) / BIN) + 1)
        for level, (_, below) in enumerate(levels.boundaries):
            of_edges = values[below][dashboards.parents[below] >= 0]
            of_edges = of_edges[of_edges.isfinite()]
            name = f"level {level} → {level + 1}"
            # Plotly's own bins leave out what lies on the last edge: edges that always hold.
            counts, _ = np.histogram(of_edges.clamp(least, 1).numpy(), edges_of_bins)
            bars = go.Bar(
                x=edges_of_bins[:-1] + BIN / 2, y=counts / max(1, len(of_edges)), width=BIN, name=name,
                legendgroup=name, marker={"color": colours[level], "line": {"width": 0}}, opacity=0.55,
                showlegend=column == 1, hovertemplate=f"%{{x:.3f}} ± {BIN / 2}: %{{y:.1%}}",
            )  # fmt: skip
            figure.add_trace(bars, row=1, col=column)
        figure.update_xaxes(range=[least, 1], col=column)
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(title_text="share of the edges", col=1)
    return finished(figure, f"Quality of the edges, on {dashboards.n_tokens:,} tokens", 420)
