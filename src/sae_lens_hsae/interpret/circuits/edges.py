"""What of a node's effect goes through which node of the next hook point (Marks et al. 2024, §3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from sae_lens_hsae.interpret.circuits.attribution import Attribution
from sae_lens_hsae.interpret.circuits.circuit import Circuit, Edge, Node
from sae_lens_hsae.interpret.circuits.pairs import Batch, Pair, batches_of
from sae_lens_hsae.interpret.circuits.places import Place, in_order, places_of


def with_edges(
    model: Any, forests: Mapping[str, Any], pairs: Sequence[Pair], circuit: Circuit, threshold: float = 0.01
) -> Circuit:
    """The circuit with edges between nodes of one level at hook points that follow each other.

    An edge u → d is ∂m/∂d · ∂d/∂u · Δu on the clean prompt, by a vector–Jacobian product for each d. Over all
    nodes d of a level the edges from u add up to the effect of u by attribution patching, if everything from u passes
    the next hook point, as in a residual stream.

    Model, forests and pairs are the circuit's, and errors as of `find_circuit`, as where the circuit is of other hook
    points; ``threshold`` is the least effect of an edge, in logits, either sign.
    """
    if not threshold >= 0:
        raise ValueError(f"threshold={threshold} must be 0 or more, in logits")
    places = places_of(model, forests)
    strangers = {node.hook for node in circuit.nodes} - {place.hook for place in places}
    if strangers:
        raise ValueError(f"the circuit has nodes at {sorted(strangers)}; give the forests it was found in")
    edges: dict[tuple[Node, Node], float] = {}
    batches = batches_of(pairs, model, places[0].saes[0])
    places = in_order(model, places, batches[0].clean[:1])
    for batch in batches:
        attribution = Attribution(model, places, batch, "attribution")
        for above, below in pairwise(places):
            _add_edges(edges, model, batch, attribution, circuit, above, below)
    found = [
        Edge(source.level, source.hook, source.name, target.hook, target.name, effect / len(pairs))
        for (source, target), effect in edges.items()
        if abs(effect) / len(pairs) >= threshold
    ]
    return replace(circuit, edges=tuple(sorted(found, key=lambda edge: (edge.level, -abs(edge.effect)))))


def _add_edges(
    edges: dict[tuple[Node, Node], float],
    model: Any,
    batch: Batch,
    attribution: Attribution,
    circuit: Circuit,
    above: Place,
    below: Place,
) -> None:
    kept: list[torch.Tensor] = []
    with torch.enable_grad():
        zeros = torch.zeros_like(attribution.clean_x[above.own], requires_grad=True)
        hooks = [
            (above.own, lambda x, hook: x + zeros.view_as(x)),  # noqa: ARG005
            (below.own, lambda x, hook: kept.append(x.flatten(2))),  # noqa: ARG005
        ]
        with model.hooks(fwd_hooks=hooks):
            model(batch.clean)
        (x,) = kept
        for target in (node for node in circuit.nodes if node.hook == below.hook):
            through = _value(x, below, target)
            # ∂m/∂d: the metric's gradient along the node's direction, which is ε's own for an error.
            weight = attribution.gradient(below, target.level) * attribution.mask(below)
            (product,) = torch.autograd.grad(
                (weight.to(through.device) * through).sum(), zeros, retain_graph=True, allow_unused=True
            )
            if product is None:  # nothing goes from the one to the other, as with parts that stand side by side
                continue
            for source in circuit.nodes:
                if source.hook == above.hook and source.level == target.level:
                    change = attribution.change_along(above, source.level, _number(above, source))
                    effect = (change * product.to(change.device)).sum().item()
                    edges[source, target] = edges.get((source, target), 0.0) + effect


def _value(x: torch.Tensor, place: Place, node: Node) -> torch.Tensor:
    """(pairs, context, d_in): the node's part of x."""
    number = _number(place, node)
    if number is None:
        return place.error(x, node.level)
    return place.acts(x, node.level)[..., number, None] * place.saes[node.level].W_dec[number].detach()


def _number(place: Place, node: Node) -> int | None:
    return None if node.feature is None else node.feature - place.forest.levels.offsets[node.level]
