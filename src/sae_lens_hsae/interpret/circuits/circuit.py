"""The result: nodes with their effects, and what was looked at to find them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sae_lens_hsae.forest.levels import named_parts
from sae_lens_hsae.interpret.labels.files import Labels, by_feature
from sae_lens_hsae.storage.json_files import read_json_object

Method = Literal["attribution", "integrated", "patch"]
SCHEMA = "sae_lens_hsae/circuit"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Node:
    """A feature at a hook point, or what a level does not reconstruct there.

    Attributes:
        hook: the hook point.
        level: of the forest there.
        feature: flat index in the forest; None for the error of the level.
        name: ``level/feature``, as ``2/17``, or ``level/error``.
        effect: logits that the answer loses against its foil, on average over the pairs, where this node is as on the
            other prompt (or 0) at all positions; positive where it helps the answer.
        label: of the feature, where there is one.
        parent: flat index of the feature's parent; None without one.
    """

    hook: str
    level: int
    feature: int | None
    name: str
    effect: float
    label: str = ""
    parent: int | None = None


@dataclass(frozen=True)
class Edge:
    """What of a node's effect goes through a node of the next hook point, see `with_edges`.

    Attributes:
        level: of both forests.
        above, source: hook point and name of the earlier node.
        below, target: of the later one.
        effect: in logits, as `Node.effect`.
    """

    level: int
    above: str
    source: str
    below: str
    target: str
    effect: float


@dataclass(frozen=True)
class Circuit:
    """What carries a behaviour, at every level. The levels are views of the same x: do not add their effects up.

    Attributes:
        method: how effects were found, see `find_circuit`.
        threshold: in logits; features of at least this effect, either sign, are nodes.
        n_pairs: examples.
        clean: mean logit difference of answer and foil on the clean prompts.
        patched: the same on the other prompts; None against zero.
        accuracy: share of clean prompts on which the answer has the higher logit.
        nodes: features in the order of hook point, level and falling |effect|; the error of every level that was
            looked at comes last there, whatever its effect.
        n_visited: features whose effect was computed, by level over all hook points.
        n_features: features there are, likewise.
        edges: between nodes, where they were asked for; by level and falling |effect|.
        folders: of the SAEs, by hook point, as seen from the folder of the circuit's file; empty where there is none.
    """

    method: str
    threshold: float
    n_pairs: int
    clean: float
    patched: float | None
    accuracy: float
    nodes: tuple[Node, ...]
    n_visited: tuple[int, ...]
    n_features: tuple[int, ...]
    edges: tuple[Edge, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)

    def at(self, level: int) -> dict[str, list[int]]:
        """The features among the nodes of one level, by hook point; the strongest first.

        Args:
            level: from 0, the coarsest; negative ones count from the finest of each hook point.

        Raises:
            IndexError: if there is no such level.
        """
        depth = len(self.n_features)
        if not -depth <= level < depth:
            raise IndexError(f"level {level} does not exist; choose one from 0 to {depth - 1}, or −1 for the finest")
        depths = {node.hook: node.level + 1 for node in self.nodes if node.feature is None}
        found: dict[str, list[int]] = {}
        for node in self.nodes:
            wanted = level if level >= 0 else depths.get(node.hook, depth) + level
            if node.level == wanted and node.feature is not None:
                found.setdefault(node.hook, []).append(node.feature)
        return found

    def labelled(self, labels: Mapping[str, Labels]) -> Circuit:
        """The same with labels of features, by hook point and flat index or name.

        Raises:
            ValueError: if a key is neither an index nor a name, a label is no text, or a hook point has no node. Labels
                of features that are no nodes are left out.
        """
        hooks = {node.hook for node in self.nodes}
        if strangers := sorted(labels.keys() - hooks):
            raise ValueError(f"labels are given at {strangers}; the circuit has nodes at {sorted(hooks)}")
        named: dict[str, dict[tuple[int, int], int]] = {hook: {} for hook in hooks}
        for node in self.nodes:
            if node.feature is not None:
                named[node.hook][named_parts(node.name)] = node.feature
        own = {hook: by_feature(given, partial(_index, named[hook])) for hook, given in labels.items()}
        of_nodes = ["" if node.feature is None else own.get(node.hook, {}).get(node.feature, "") for node in self.nodes]
        nodes = tuple(replace(node, label=label) for node, label in zip(self.nodes, of_nodes, strict=True))
        return replace(self, nodes=nodes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reads them back."""
        return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Circuit:
        """The circuit that `to_dict` described.

        Raises:
            ValueError: if the data are no such circuit.
        """
        if (data.get("schema"), data.get("schema_version")) != (SCHEMA, SCHEMA_VERSION):
            raise ValueError(f"schema={data.get('schema')!r} is no {SCHEMA} of version {SCHEMA_VERSION}")
        own: dict[str, Any] = {name: value for name, value in data.items() if not name.startswith("schema")}
        try:
            own["nodes"] = tuple(Node(**node) for node in own["nodes"])
            own["edges"] = tuple(Edge(**edge) for edge in own["edges"])
            own |= {name: tuple(own[name]) for name in ("n_visited", "n_features")}
            return cls(**own)
        except (TypeError, KeyError) as error:
            raise ValueError(f"the data are no circuit ({error})") from error


def _index(named: Mapping[tuple[int, int], int], feature: int | str) -> int:
    """Flat index of a feature given by it or by its name; −1 for a name of none of the nodes."""
    return named.get(named_parts(feature), -1) if isinstance(feature, str) else operator.index(feature)


def read_circuit(path: str | Path) -> Circuit:
    """The circuit in a file that ``hsae circuit`` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it holds no circuit.
    """
    try:
        return Circuit.from_dict(read_json_object(Path(path)))
    except ValueError as error:
        raise ValueError(f"circuit={str(path)!r} holds no circuit: {error}") from error
