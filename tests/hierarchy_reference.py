"""Small stacks and forests, and what `evaluate_forest` finds of them as plain loops in float64; slow on purpose."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

from sae_lens_hsae.forest import FeatureForest


def jumprelu(d_in: int, width: int, dtype: str = "float64") -> JumpReLUSAE:
    return JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=width, dtype=dtype))


def readout_levels(widths: tuple[int, ...]) -> list[JumpReLUSAE]:
    """Levels whose features read one coordinate of x each, so that x itself says how active they are."""
    directions = torch.eye(sum(widths), dtype=torch.float64).split(widths)
    levels = []
    for width, rows in zip(widths, directions, strict=True):
        sae = jumprelu(sum(widths), width)
        sae.W_enc.data, sae.W_dec.data = rows.T.clone(), rows.clone()
        levels.append(sae)
    return levels


def tokens(n_features: int, *active: Sequence[int] | Mapping[int, float]) -> torch.Tensor:
    """One row per token: the features that are active, with their activations, 1 unless given."""
    x = torch.zeros(len(active), n_features, dtype=torch.float64)
    for token, features in enumerate(active):
        for feature in features:
            x[token, feature] = features[feature] if isinstance(features, Mapping) else 1.0
    return x


def random_levels(widths: tuple[int, ...], d_in: int, seed: int) -> list[JumpReLUSAE]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    levels = []
    for width in widths:
        sae = jumprelu(d_in, width)
        sae.W_enc.data, sae.W_dec.data = normal(d_in, width) / d_in**0.5, normal(width, d_in) / width**0.5
        sae.b_enc.data, sae.b_dec.data = 0.1 * normal(width), 0.1 * normal(d_in)
        sae.threshold.data = normal(width).abs()
        sae.b_enc.data[::5] = -100.0  # dead
        levels.append(sae)
    return levels


def random_forest(widths: tuple[int, ...], seed: int) -> FeatureForest:
    generator = torch.Generator().manual_seed(seed)
    parents, start = [-1] * widths[0], 0
    for above, here in pairwise(widths):
        drawn = torch.randint(-1, above, (here,), generator=generator)
        parents += [p if p == -1 else p + start for p in drawn.tolist()]
        start += above
    return FeatureForest(parents, widths)


def slow_evaluation(levels: list[JumpReLUSAE], forest: FeatureForest, x: torch.Tensor) -> dict[str, Any]:
    """The definitions, read off literally, one pair and one token at a time; without intervals and their reasons."""
    n = len(x)
    strengths = [(sae.encode(x) * sae.W_dec.norm(dim=1)).tolist() for sae in levels]
    spread = sum(float((row - x.mean(0)).square().sum()) for row in x)
    centre = x[:1024].median(0).values
    limit = 3 * (x[:1024] - centre).norm(dim=1).median()
    ordinary = [i for i, row in enumerate(x) if float((row - centre).norm()) <= limit]
    spread_ordinary = sum(float((x[i] - x[ordinary].mean(0)).square().sum()) for i in ordinary)
    result: dict[str, Any] = {"n_tokens": n, "n_outlying": n - len(ordinary), "levels": [], "boundaries": []}
    for i, sae in enumerate(levels):
        errors = [float((sae.decode(sae.encode(row)) - row).square().sum()) for row in x]
        error, error_ordinary = sum(errors), sum(errors[i] for i in ordinary)
        fires = [sum(strengths[i][t][f] > 0 for t in ordinary) for f in range(forest.level_widths[i])]
        result["levels"].append(
            {
                "level": i,
                "width": forest.level_widths[i],
                "l0": sum(s > 0 for token in strengths[i] for s in token) / n,
                "variance_explained": 1 - error / spread,
                "n_dead": fires.count(0),
                "variance_explained_ordinary": 1 - error_ordinary / spread_ordinary,
                "l0_ordinary": sum(s > 0 for t in ordinary for s in strengths[i][t]) / len(ordinary),
            }
        )
    strengths = [[own[t] for t in ordinary] for own in strengths]
    fires = [any(token[f] > 0 for token in own) for own in strengths for f in range(len(own[0]))]
    decoder = torch.cat([sae.W_dec for sae in levels])
    root, copy = list(range(forest.n_features)), [False] * forest.n_features
    for parent, child in forest.edges().tolist():  # parents come first
        if fires[parent] and fires[child]:
            root[child] = root[parent]
            copy[child] = float(torch.cosine_similarity(decoder[parent], decoder[child], dim=0)) > 0.8
    concepts = {top: sum(r == top and not c for r, c in zip(root, copy, strict=True)) for top in root}
    result["in_trees_share"] = mean([concepts[top] >= 3 for top in root])
    for i, (above, below) in enumerate(pairwise(strengths)):
        parent_of = []
        for child in range(forest.level_widths[i + 1]):
            parent = forest.parent(f"{i + 1}/{child}")
            parent_of.append(None if parent is None else parent - forest.levels[i].start)
        own = copy[forest.levels[i + 1]]
        result["boundaries"].append({"parent_level": i, **slow_boundary(above, below, parent_of, own)})
    return result


def slow_boundary(
    above: list[list[float]], below: list[list[float]], parent_of: list[int | None], copy: list[bool]
) -> dict[str, Any]:
    """One boundary: activations of parents and children per token, each child's parent, and whether it is a copy."""
    n, n_parents, n_children = len(above), len(above[0]), len(below[0])
    parent_fires = [sum(token[p] > 0 for token in above) for p in range(n_parents)]
    child_fires = [sum(token[c] > 0 for token in below) for c in range(n_children)]
    pairs = [(p, c) for c, p in enumerate(parent_of) if p is not None]
    living = [(p, c) for p, c in pairs if parent_fires[p] and child_fires[c]]
    children = {p: [c for q, c in living if q == p] for p in range(n_parents)}
    together = {(p, c): sum(u[p] > 0 and d[c] > 0 for u, d in zip(above, below, strict=True)) for p, c in living}
    disagreements, covered = [], []
    for p in range(n_parents):
        predicted = [any(token[c] > 0 for c in children[p]) for token in below]
        disagreements.append(sum((u[p] > 0) != s for u, s in zip(above, predicted, strict=True)))
        covered.append(sum(u[p] > 0 and s for u, s in zip(above, predicted, strict=True)))
    dominance = [
        sum(u[p] > d[c] > 0 for u, d in zip(above, below, strict=True)) / together[p, c]
        for p, c in living
        if together[p, c]
    ]
    observed, expected, n_pairs = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for c, d in combinations(range(n_children), 2):
        if child_fires[c] and child_fires[d]:
            siblings = parent_of[c] is not None and parent_of[c] == parent_of[d]
            observed[siblings] += sum(token[c] > 0 and token[d] > 0 for token in below) / n
            expected[siblings] += child_fires[c] / n * child_fires[d] / n
            n_pairs[siblings] += 1
    lift: dict[bool, Any] = {
        siblings: observed[siblings] / expected[siblings] if n_pairs[siblings] else None for siblings in n_pairs
    }
    similar = [together[p, c] / child_fires[c] - 2 * parent_fires[p] / n for p, c in living if not copy[c]]
    n_unassigned = parent_of.count(None)
    n_branches = [sum(q == p for q, _ in pairs) for p in range(n_parents)]
    n_branches = [n for n in n_branches if n]
    return {
        "hamming": sum(disagreements[p] for p in range(n_parents) if children[p]) / n,
        "p_parent_given_child": mean([together[p, c] / child_fires[c] for p, c in living]),
        "p_child_given_parent": mean([together[p, c] / parent_fires[p] for p, c in living]),
        "n_pairs": len(pairs),
        "n_pairs_left_out": len(pairs) - len(living),
        "n_parents_with_children": sum(bool(own) for own in children.values()),
        "n_unassigned": n_unassigned,
        "unassigned_share": n_unassigned / n_children,
        "coverage": mean([covered[p] / parent_fires[p] for p in range(n_parents) if children[p]]),
        "dominance": mean(dominance),
        "sibling_coactivation": lift[True],
        "non_sibling_coactivation": lift[False],
        "sibling_lift": lift[True] / lift[False] if lift[True] is not None and lift[False] else None,
        "mean_children": mean(n_branches),
        "max_children": max(n_branches, default=0),
        "several_children_share": mean([n > 1 for n in n_branches]),
        "copy_share": mean([copy[c] for _, c in living]),
        "weak_share": mean([each < 0.5 for each in similar]),
        "clear_share": mean([each >= 0.65 for each in similar]),
    }


def mean(values: list[Any]) -> float | None:
    return math.fsum(values) / len(values) if values else None
