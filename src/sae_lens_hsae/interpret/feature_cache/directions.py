"""What the decoder directions alone say: neighbours, closeness of parent and child, promoted tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.post_hoc import have_either_sign

MAX_ELEMENTS_AT_ONCE = 2**24


def decoder_directions(saes: Sequence[Any], forest: FeatureForest, n_nearest: int) -> dict[str, torch.Tensor]:
    """Nearest features of the same level, and how each lies to its parent, as fields of `Dashboards`.

    Cosines of features that fire with either sign have none themselves: opposite directions are one.
    """
    directions = [sae.W_dec.detach().float() for sae in saes]
    signed = have_either_sign(saes)
    n = forest.n_features
    nearest = torch.full((n, n_nearest), -1, dtype=torch.int32)
    nearest_cosines = torch.zeros(n, n_nearest)
    for own, weights in zip(forest.levels, directions, strict=True):
        k = min(n_nearest, len(weights) - 1)
        if k:
            cosines, features = _nearest(weights, k, signed)
            nearest[own, :k] = (features + own.start).int().cpu()
            nearest_cosines[own, :k] = cosines.cpu()

    cosine, projection = torch.full((n,), torch.nan), torch.full((n,), torch.nan)
    for (above, below), (coarse, fine) in zip(forest.levels.boundaries, pairwise(directions), strict=True):
        parents = forest.parents[below]
        children = (parents >= 0).nonzero().flatten()
        of_parent, of_child = coarse[parents[children] - above.start], fine[children]
        product = (of_parent * of_child).sum(1)
        projection[below.start + children] = (product / of_parent.square().sum(1).clamp(min=1e-12)).cpu()
        norms = (of_parent.norm(dim=1) * of_child.norm(dim=1)).clamp(min=1e-12)
        cosine[below.start + children] = ((product.abs() if signed else product) / norms).cpu()
    return {
        "nearest": nearest,
        "nearest_cosines": nearest_cosines,
        "parent_cosine": cosine,
        "parent_projection": projection,
    }


def promoted_tokens(saes: Sequence[Any], unembedding: torch.Tensor | None, n: int) -> dict[str, torch.Tensor | None]:
    """Tokens whose logit a direction raises and lowers most, fields of `Dashboards`; None without unembedding."""
    names = ("promoted_tokens", "promoted_logits", "suppressed_tokens", "suppressed_logits")
    if unembedding is None:
        return dict.fromkeys(names)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    n = min(n, unembedding.shape[1])
    at_once = max(1, MAX_ELEMENTS_AT_ONCE // unembedding.shape[1])
    for sae in saes:
        for rows in sae.W_dec.detach().float().split(at_once):
            logits = rows @ unembedding.to(rows)
            for kind, largest in (("promoted", True), ("suppressed", False)):
                values, tokens = logits.topk(n, largest=largest)
                parts[f"{kind}_logits"].append(values.cpu())
                parts[f"{kind}_tokens"].append(tokens.int().cpu())
    return {name: torch.cat(part) for name, part in parts.items()}


def _nearest(weights: torch.Tensor, k: int, either_sign: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and indices of the ``k`` rows nearest to each row, itself left out, in blocks of bounded size."""
    unit = torch.nn.functional.normalize(weights, dim=1)
    at_once = max(1, MAX_ELEMENTS_AT_ONCE // len(unit))
    found = []
    for start in range(0, len(unit), at_once):
        cosines = unit[start : start + at_once] @ unit.T
        cosines = cosines.abs() if either_sign else cosines
        cosines.diagonal(start).fill_(-torch.inf)
        found.append(cosines.topk(k, dim=1))
    return torch.cat([values for values, _ in found]), torch.cat([features for _, features in found])
