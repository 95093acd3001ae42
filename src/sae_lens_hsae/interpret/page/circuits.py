"""A circuit on the page: the features that carry a behaviour, each linked to where the page shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote

from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.circuits import Circuit, Node
from sae_lens_hsae.interpret.page.page import PageSection

MOST_EDGES = 3


def circuit_section(
    circuit: Circuit, hook: str, forest: FeatureForest, name: str, pages: Mapping[str, str] | None = None
) -> PageSection:
    """The circuit as a graph, a column for each hook point; and of each node at this one, where its edges lead.

    Args:
        circuit: from `find_circuit`.
        hook: the hook point of the page's forest.
        name: what to call the circuit.
        pages: of the other hook points' SAEs, as seen from this page.

    Raises:
        ValueError: if the circuit is of other hook points, or of another forest at this one.
    """
    hooks = list(dict.fromkeys(node.hook for node in circuit.nodes))
    if hook not in hooks:
        raise ValueError(f"circuit {name!r} has no node at {hook}; its hook points: {', '.join(hooks) or 'none'}")
    lines = []
    for node in circuit.nodes:
        if node.hook != hook or node.feature is None:
            continue
        exists = node.feature < len(forest) and forest.levels.name(node.feature) == node.name
        if not exists or forest.parent(node.feature) != node.parent:
            raise ValueError(
                f"circuit {name!r} is of another forest, as of an earlier training: its node {node.name}, number "
                f"{node.feature}, does not exist here, or has another parent; find it again with these SAEs"
            )
        lines.append(("; ".join([f"{node.effect:+.2f} logits", *_edges(circuit, node)]), [node.feature]))
    title = f"Circuit {name}: the answer leads its foil by {circuit.clean:.2f} logits"
    return PageSection(title, lines, _graph(circuit, hooks, hook, pages or {}))


def _graph(circuit: Circuit, hooks: list[str], here: str, pages: Mapping[str, str]) -> dict[str, object]:
    """Plain values for ``circuit.js``; edges of errors are left out, since there are many."""
    columns = []
    for hook in hooks:
        own = [node for node in circuit.nodes if node.hook == hook]
        features = [node for node in own if node.feature is not None]
        columns.append(
            {
                "hook": hook,
                "here": hook == here,
                "page": quote(pages[hook]) if hook in pages else None,
                "errors": [[node.level, node.effect] for node in own if node.feature is None],
                "nodes": [[node.feature, node.parent, node.name, node.effect, node.label] for node in features],
            }
        )
    edges = [
        [hooks.index(edge.above), edge.source, edge.target, edge.effect]
        for edge in circuit.edges
        if edge.above in hooks and "error" not in edge.source + edge.target
    ]
    return {"columns": columns, "edges": edges}


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
