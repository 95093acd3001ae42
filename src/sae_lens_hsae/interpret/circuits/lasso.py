"""A circuit read off activations alone, by sparse regression between hook points: CircuitLasso (arXiv 2606.16939).

Nothing is patched and no gradient is taken. A sample is a prompt, with what it has of each feature in all its tokens
together. The logit difference is regressed on the features of the last hook point, the features chosen there on those
of the hook point before, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sae_lens_hsae.forest.descent import candidates_below
from sae_lens_hsae.interpret.circuits.circuit import Circuit, Node
from sae_lens_hsae.interpret.circuits.pairs import Batch, Pair, batches_of
from sae_lens_hsae.interpret.circuits.places import Place, places_of, total_features
from sae_lens_hsae.text.hook_point import run_and_keep

N_STEPS = 500
"""Of FISTA."""


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
    """Lasso of each column of y on x by FISTA: argmin_W ‖Y − XW‖² / 2n + λ ‖W‖₁, of centred columns of unit variance.

    As scikit-learn's ``Lasso``, which would be a dependency for this alone.

    Args:
        x: (n, n_features).
        y: (n, n_targets).
        penalty: λ of each target, as a share of the least at which its weights are all 0.

    Returns:
        (n_features, n_targets) weights, in the units of x and y; 0 for columns that do not vary.
    """
    (x, x_size), (y, y_size) = _standardized(x), _standardized(y)
    gram, cross = x.T @ x / len(x), x.T @ y / len(x)
    weights = ahead = torch.zeros_like(cross)
    if not cross.any():
        return weights
    limits, length = penalty * cross.abs().amax(0), torch.linalg.matrix_norm(gram, 2)
    momentum = 1.0
    for _ in range(N_STEPS):
        last = weights
        moved = ahead - (gram @ ahead - cross) / length
        weights = moved.sign() * (moved.abs() - limits / length).clamp(min=0)
        momentum, before = (1 + math.sqrt(1 + 4 * momentum**2)) / 2, momentum
        ahead = weights + (before - 1) / momentum * (weights - last)
    return weights * torch.where(y_size.isinf(), 0, y_size) / x_size.unsqueeze(1)


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
