"""Going down a forest for a circuit: only into children of parents that matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch

from sae_lens_hsae.forest.feature_forest import candidates_below
from sae_lens_hsae.interpret.circuits.attribution import Attribution
from sae_lens_hsae.interpret.circuits.circuit import Circuit, Method, Node
from sae_lens_hsae.interpret.circuits.pairs import Pair, batches_of
from sae_lens_hsae.interpret.circuits.places import in_order, places_of, total_features


def find_circuit(
    model: Any,
    forests: Mapping[str, Any],
    pairs: Sequence[Pair],
    method: Method = "attribution",
    threshold: float = 0.1,
    unassigned: bool = True,
) -> Circuit:
    """The features that carry a behaviour, coarse to fine.

    At every hook point the effects of the coarsest level's features are computed first; at a finer level, those of the
    children of features of at least the threshold, and of unassigned features, for which nothing coarser stands.
    Every level is taken in its own reconstruction, with its own error.

    Args:
        model: a causal ``HookedSAETransformer``, ``SAETransformerBridge``, or what ``load_language_model`` gives.
        forests: by hook point, a ``HierarchicalSAE`` or another stack of levels with its ``forest``.
        pairs: the behaviour.
        method: "attribution": attribution patching, ∂m/∂f · Δf on the clean prompt; "integrated": the gradient's
            mean over ten points between both prompts; "patch": exactly, with a run of the model per feature.
        threshold: in logits.
        unassigned: whether unassigned features are looked at; without them the circuit is that of the roots' trees.

    Raises:
        ValueError: before anything is computed, if an argument is wrong; see `batches_of` and `places_of`.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold={threshold} must be 0 or more, in logits")
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} must be one of {', '.join(get_args(Method))}")
    places = places_of(model, forests)
    batches = batches_of(pairs, model, places[0].saes[0])
    places = in_order(model, places, batches[0].clean[:1])
    attributions = [Attribution(model, places, batch, method) for batch in batches]
    depth = max(len(place.forest.levels) for place in places)
    visited, nodes = [0] * depth, []
    for place in places:
        over = torch.zeros(len(place.forest), dtype=torch.bool)
        for level, own in enumerate(place.forest.levels):
            candidates = candidates_below(place.forest, level, over, unassigned)
            of_batches = [each.features(place, level, candidates).cpu() for each in attributions]
            effects = torch.stack(of_batches).sum(0) / len(pairs)
            visited[level] += len(candidates)
            chosen = candidates[effects.abs() >= threshold] + own.start
            over[chosen] = True
            by_feature = dict(zip((candidates + own.start).tolist(), effects.tolist(), strict=True))
            strongest = sorted(chosen.tolist(), key=lambda feature: -abs(by_feature[feature]))
            nodes += [place.node(level, feature, by_feature[feature]) for feature in strongest]
            error = sum(each.error(place, level) for each in attributions) / len(pairs)
            nodes.append(Node(place.hook, level, None, f"{level}/error", error))
    clean = torch.cat([each.clean for each in attributions])
    patched = [each.patched for each in attributions if each.patched is not None]
    return Circuit(
        method=method,
        threshold=float(threshold),
        n_pairs=len(pairs),
        clean=clean.mean().item(),
        patched=torch.cat(patched).mean().item() if patched else None,
        accuracy=(clean > 0).float().mean().item(),
        nodes=tuple(nodes),
        n_visited=tuple(visited),
        n_features=total_features(places),
    )
