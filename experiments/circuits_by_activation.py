"""Circuits read off activations alone, without patches or gradients: what occurs together, not what causes what.

CircuitLasso (arXiv 2606.16939) is sparse regression between hook points. A sample is a prompt, with what it has of each
feature in all its tokens together. The logit difference is regressed on the features of the last hook point, the
features chosen there on those of the hook point before, and so on.

Co-activation modules (2506.18141) are features of several hook points that rise and fall together from token to token:
connected components of the graph whose edges are strong correlations between features of neighbouring hook points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from sae_lens_hsae.forest.feature_forest import candidates_below
from sae_lens_hsae.interpret.circuits import Circuit, Node, Pair
from sae_lens_hsae.interpret.circuits.pairs import Batch, batches_of
from sae_lens_hsae.interpret.circuits.places import Place, in_order, places_of, total_features
from sae_lens_hsae.text.hook_point import check_length, ids_of_text, run_and_keep

Module = dict[str, list[int]]
"""Features by hook point, as flat indices."""


@torch.no_grad()
def lasso_circuit(
    model: Any,
    forests: Mapping[str, Any],
    pairs: Sequence[Pair],
    penalty: float = 0.1,
    threshold: float = 0.1,
    unassigned: bool = True,
) -> Circuit:
    """The features that predict a behaviour from prompt to prompt, coarse to fine.

    At every level features are regressed on features of the same level. A finer level takes part with the children of
    the features chosen above, and with unassigned features. The effect of a node is the product of the weights on its
    ways to the logit difference, times how much more of the feature the clean prompts have than the others.

    Args:
        model: as for `find_circuit`, like ``forests`` and ``pairs``. Give many pairs: each is a sample or two.
        penalty: λ of each regression, as a share of the least λ at which no feature is chosen.
        threshold: in logits; features of at least this effect, either sign, are nodes.
        unassigned: as for `find_circuit`.

    Returns:
        The circuit; without errors, of which activations alone say nothing.

    Raises:
        ValueError: before anything is computed, if an argument is wrong; see `batches_of` and `places_of`.
    """
    if not 0 < penalty <= 1:
        raise ValueError(f"penalty={penalty} must be above 0 and at most 1, a share of the least that chooses nothing")
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold={threshold} must be 0 or more, in logits")
    places = places_of(model, forests)
    batches = batches_of(pairs, model, places[0].saes[0])
    places = in_order(model, places, batches[0].clean[:1])
    depth = max(len(place.forest.levels) for place in places)
    samples = _Samples(model, places, batches)
    visited, nodes = [0] * depth, []
    over = {place.own: torch.zeros(len(place.forest), dtype=torch.bool) for place in places}
    for level in range(depth):
        found: list[Node] = []
        targets, weights = samples.metric, torch.ones(1, dtype=torch.float64)
        for place in reversed([place for place in places if level < len(place.forest.levels)]):
            columns = candidates_below(place.forest, level, over[place.own], unassigned)
            visited[level] += len(columns)
            own = samples.of(place, level)[:, columns]
            weights = sparse_regression(own, targets, penalty) @ weights
            effects = weights * (own[samples.is_clean].mean(0) - samples.without(own))
            start = place.forest.levels[level].start
            chosen = (effects.abs() >= threshold) & (weights != 0)
            over[place.own][columns[chosen] + start] = True
            order = effects.abs().argsort(descending=True, stable=True)
            found = [
                place.node(level, int(columns[i]) + start, effects[i].item()) for i in order.tolist() if chosen[i]
            ] + found
            carries = weights != 0
            targets, weights = own[:, carries], weights[carries]
        nodes += found
    metric, is_clean, hooks = samples.metric[:, 0], samples.is_clean, [place.hook for place in places]
    return Circuit(
        method="lasso",
        threshold=float(threshold),
        n_pairs=len(pairs),
        clean=metric[is_clean].mean().item(),
        patched=metric[~is_clean].mean().item() if samples.has_patch else None,
        accuracy=(metric[is_clean] > 0).float().mean().item(),
        nodes=tuple(sorted(nodes, key=lambda node: hooks.index(node.hook))),
        n_visited=tuple(visited),
        n_features=total_features(places),
    )


def sparse_regression(x: torch.Tensor, y: torch.Tensor, penalty: float) -> torch.Tensor:
    """Lasso of each column of y on x, all columns at mean 0 and variance 1: argmin_W ‖Y − XW‖² / 2n + λ ‖W‖₁.

    Args:
        x: (n, n_features).
        y: (n, n_targets).
        penalty: λ of each target, as a share of the least at which its weights are all 0.

    Returns:
        (n_features, n_targets) weights, in the units of x and y; 0 for columns that do not vary.
    """
    from sklearn.linear_model import Lasso

    (x, x_size), (y, y_size) = _standardized(x), _standardized(y)
    cross = x.T @ y / len(x)
    weights = torch.zeros_like(cross)
    varying = cross.any(0)
    if not varying.any():
        return weights
    # Over its limit each target has the same λ.
    limits = cross[:, varying].abs().amax(0)
    lasso = Lasso(penalty, fit_intercept=False, max_iter=10_000, tol=1e-10)
    found = lasso.fit(x.numpy(), (y[:, varying] / limits).numpy()).coef_.reshape(-1, x.shape[1])
    weights[:, varying] = torch.from_numpy(found).T * limits * y_size[varying]
    return weights / x_size.unsqueeze(1)


def _standardized(columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of mean 0 and variance 1, and the deviations they had: inf for columns that do not vary, which are 0."""
    columns = columns.double()
    size = columns.std(0, correction=0)
    size = torch.where(size > 1e-9 * columns.abs().amax(0), size, torch.inf)
    columns = columns - columns.mean(0)
    return columns / size, size


class _Samples:
    """Prompts as samples: of each their logit difference, and what they have of each feature, clean ones first.

    Attributes:
        metric: (prompts, 1).
        is_clean: (prompts,) bool.
        has_patch: whether there are others than clean ones.
    """

    def __init__(self, model: Any, places: Sequence[Place], batches: Sequence[Batch]) -> None:
        self._kept: dict[str, list[torch.Tensor]] = {place.own: [] for place in places}
        metric, is_clean = [], []
        self.has_patch = batches[0].patch is not None
        for batch in batches:
            for tokens in (batch.clean, batch.patch):
                if tokens is None:
                    continue
                logits, kept = run_and_keep(model, tokens, list(self._kept))
                metric.append(batch.differences(logits))
                is_clean += [tokens is batch.clean] * len(tokens)
                for place in places:
                    x = kept[place.own]
                    self._kept[place.own].append(x[:, place.trained_on(x.shape[1], batch.n_before)])
        self.metric = torch.cat(metric).double().cpu().unsqueeze(1)
        self.is_clean = torch.tensor(is_clean)

    def of(self, place: Place, level: int) -> torch.Tensor:
        """(prompts, n_l) activations summed over each prompt's tokens."""
        return torch.cat([place.acts(x, level).double().sum(1).cpu() for x in self._kept[place.own]])

    def without(self, own: torch.Tensor) -> torch.Tensor:
        """(n,) what the other prompts have on average; 0 against zero."""
        return own[~self.is_clean].mean(0) if self.has_patch else torch.zeros_like(own[0])


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
        check_length(model, len(before) + len(ids), f"texts: number {i}")
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
