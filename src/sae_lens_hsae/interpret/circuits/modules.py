"""Features of several hook points that rise and fall together from token to token: co-activation modules (2506.18141).

Nothing is patched: a module is a connected component of the graph whose edges are strong correlations between features
of neighbouring hook points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from sae_lens_hsae.interpret.circuits.places import places_of
from sae_lens_hsae.text.hook_point import check_length, ids_of_text, run_and_keep

Module = dict[str, list[int]]
"""Features by hook point, as flat indices."""


@torch.no_grad()
def coactivation_modules(
    model: Any,
    forests: Mapping[str, Any],
    texts: Sequence[str],
    level: int = -1,
    strongest: int = 5,
    correlation: float = 0.9,
    most_frequent: float = 0.5,
) -> list[Module]:
    """Modules among the strongest features of each token.

    Args:
        model: as for `find_circuit`, like ``forests``; at least two hook points.
        texts: whose tokens are compared, all together.
        level: of every forest; −1 is the finest.
        strongest: features of each token and hook point that can be in a module.
        correlation: Pearson's over all tokens; above it two features of neighbouring hook points are joined.
        most_frequent: features that fire on a larger share of the tokens are left out. The paper leaves out those of a
            density above .01; levels of a thousand features with an L0 of 16 have hardly any others.

    Returns:
        The modules, the largest first; every one has features at two hook points at least.

    Raises:
        IndexError: if a forest has no such level.
        ValueError: if there is one hook point only, no text, or an argument is out of range; see `places_of`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    for name, value in (("correlation", correlation), ("most_frequent", most_frequent)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value} must be above 0 and at most 1")
    if strongest < 1:
        raise ValueError(f"strongest={strongest} must be at least 1")
    places = places_of(model, forests)
    if len(places) < 2:
        raise ValueError("forests has one hook point, and modules join features of several; give two at least")
    if not texts:
        raise ValueError("texts is empty; give at least one")
    levels = [place.level(level) for place in places]
    seen: list[list[torch.Tensor]] = [[] for _ in places]
    prompts = [ids_of_text(model, places[0].saes[0], text) for text in texts]
    for i, (before, ids) in enumerate(prompts):
        if not ids:
            raise ValueError(f"texts: number {i} has no token; give texts with words")
        check_length(model, before, ids, f"texts: number {i}")
    for before, ids in prompts:
        tokens = torch.tensor([before + ids], device=places[0].saes[0].device)
        _, kept = run_and_keep(model, tokens, [place.own for place in places])
        for own, place, at in zip(seen, places, levels, strict=True):
            x = kept[place.own][0]
            own.append(place.acts(x[place.trained_on(len(x), len(before))], at).cpu())
    candidates, columns = [], []
    for own in seen:
        acts = torch.cat(own).double()
        is_strong = torch.zeros_like(acts, dtype=torch.bool)
        is_strong.scatter_(1, acts.topk(min(strongest, acts.shape[1]), dim=1).indices, True)
        found = ((is_strong & (acts > 0)).any(0) & ((acts > 0).double().mean(0) <= most_frequent)).nonzero().flatten()
        centred = acts[:, found] - acts[:, found].mean(0)
        candidates.append(found)
        columns.append(torch.nn.functional.normalize(centred, dim=0))
    offsets = torch.tensor([0, *map(len, candidates)]).cumsum(0)
    edges = [
        ((above.T @ below) > correlation).nonzero() + offsets[i : i + 2]
        for i, (above, below) in enumerate(pairwise(columns))
    ]
    source, target = torch.cat(edges).T
    members = [
        (place.hook, place.forest.levels[at].start + feature)
        for place, at, own in zip(places, levels, candidates, strict=True)
        for feature in own.tolist()
    ]
    graph = coo_array((torch.ones(len(source)), (source, target)), shape=(len(members), len(members)))
    modules: dict[int, Module] = {}
    for (hook, feature), component in zip(members, connected_components(graph, directed=False)[1], strict=True):
        modules.setdefault(component, {}).setdefault(hook, []).append(feature)
    joined = [module for module in modules.values() if len(module) > 1]  # what is joined to nothing has one hook point
    return sorted(joined, key=lambda module: -sum(map(len, module.values())))
