"""A circuit on the page: the features that carry a behaviour, each linked to where the page shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sae_lens_hsae.interpret.page.sections import PageSection

if TYPE_CHECKING:
    from sae_lens_hsae.forest import FeatureForest
    from sae_lens_hsae.interpret.circuits import Circuit, Node

MOST_EDGES = 3


def circuit_section(circuit: Circuit, hook: str, forest: FeatureForest, name: str) -> PageSection:
    """The nodes at one hook point, coarse to fine and the strongest first, and where their strongest edges lead.

    Args:
        circuit: from `find_circuit`.
        hook: the hook point of the page's forest.
        forest: of the page.
        name: what to call the circuit.

    Raises:
        ValueError: if the circuit is of other hook points, or of another forest at this one.
    """
    nodes = [node for node in circuit.nodes if node.hook == hook]
    if not nodes:
        hooks = ", ".join(dict.fromkeys(node.hook for node in circuit.nodes)) or "none"
        raise ValueError(f"circuit {name!r} has no node at {hook}; its hook points: {hooks}")
    features = [(node, node.feature) for node in nodes if node.feature is not None]
    for node, feature in features:
        if not feature < len(forest) or forest.levels.name(feature) != node.name:
            raise ValueError(
                f"circuit {name!r} is of another forest: its node {node.name} is number {feature}, which this forest "
                f"with level_widths={list(forest.level_widths)} does not have; find it again with these SAEs"
            )
    lines = [
        ("; ".join([f"{node.effect:+.2f} logits", *_edges(circuit, node)]), [feature]) for node, feature in features
    ]
    title = f"Circuit {name}: the answer leads its foil by {circuit.clean:.2f} logits"
    return PageSection(title, lines or [("No feature is over the threshold here.", [])])


def _edges(circuit: Circuit, node: Node) -> Iterator[str]:
    """Where the node's strongest edges lead, and come from."""
    below = [edge for edge in circuit.edges if (edge.above, edge.source) == (node.hook, node.name)]
    above = [edge for edge in circuit.edges if (edge.below, edge.target) == (node.hook, node.name)]
    if below:
        shown = (f"{edge.target} ({edge.effect:+.2f})" for edge in below[:MOST_EDGES])
        yield f"through {below[0].below} {', '.join(shown)}"
    if above:
        shown = (f"{edge.source} ({edge.effect:+.2f})" for edge in above[:MOST_EDGES])
        yield f"from {above[0].above} {', '.join(shown)}"
