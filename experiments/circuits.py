"""Circuits of behaviours of Gemma 3 270M: does going down the forest find what looking at every fine feature finds?"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeVar

import torch

from experiments.behaviours import BEHAVIOURS, usable
from experiments.gemma_forests import gemma_forest
from experiments.gemma_stream import LAYERS, GemmaActivations, gemma_model, hook_of
from experiments.kept_names import named_by
from experiments.models import HSAE
from experiments.paper_tables import Size, Stream, kept_name
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.circuits import Ablation, Circuit, Pair, find_circuit
from sae_lens_hsae.interpret.circuits.circuit import Method

N_PAIRS = 6
LEAST_ACCURACY = 0.6
"""A behaviour below it is one that the model does not have."""
THRESHOLD = 0.1
"""Of a node, in logits."""
N_NODES = (8, 32, 128)
"""Sizes of circuits, all hook points together."""
FINEST = 3
FLAT, INTEGRATED = "flat", "flat, integrated"
"""All features, by attribution patching or by integrated gradients."""
DOWN, TREES_ONLY, DOWN_INTEGRATED = "down the forest", "roots' trees only", "down the forest, integrated"

T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """The model and the trained forests, loaded when the first cell needs them."""

    activations: GemmaActivations
    folder: Path
    size: Size

    @cached_property
    def model(self) -> Any:
        model = gemma_model()
        # Only the last position's logits are asked for, and most of this model's parameters make logits.
        model.add_hook("ln_final.hook_normalized", lambda x, hook: x[:, -1:], is_permanent=True)  # noqa: ARG005
        return model

    @cached_property
    def forests(self) -> dict[str, Any]:
        return {hook_of(layer): gemma_forest(self.activations, self.folder, self.size, layer)[0] for layer in LAYERS}


def reproduce_circuits(activations: GemmaActivations, folder: Path, size: Size) -> list[dict[str, Any]]:
    """Rows of the tables that `circuit_rows` makes; what is measured is kept by behaviour.

    Args:
        activations: what the models were trained on.
        folder: where trained models and finished cells are kept.
        size: of their training; one seed.
    """
    subject = Subject(activations, folder, size)
    forests = [kept_name(HSAE, Stream(layer, 16.0, 0), size) for layer in LAYERS]
    settings = (forests, LEAST_ACCURACY, THRESHOLD, N_NODES)
    cells = [
        Cell(named_by(f"circuits-{N_PAIRS}pairs-{name}-{size.name}", settings), measure_behaviour, (name, subject))
        for name in BEHAVIOURS
    ]
    return circuit_rows(finish_cells(cells, folder, "Circuits"))


def measure_behaviour(name: str, subject: Subject) -> dict[str, Any]:
    """Accuracy; and of a behaviour that the model has, effects, circuits and what they are worth."""
    model, forests = subject.model, subject.forests
    pairs = usable(BEHAVIOURS[name](), model.tokenizer, N_PAIRS)
    seconds: dict[str, float] = {}

    def timed(way: str, compute: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = compute()
        seconds[way] = time.perf_counter() - began
        return result

    def down(method: Method = "attribution", unassigned: bool = True) -> Circuit:
        return find_circuit(model, forests, pairs, method, THRESHOLD, unassigned)

    circuits = {DOWN: timed(DOWN, down)}
    circuit = circuits[DOWN]
    found: dict[str, Any] = {"behaviour": name, "pairs": len(pairs), "accuracy": circuit.accuracy}
    if circuit.accuracy < LEAST_ACCURACY:
        return found | {"left_out": True}
    circuits[TREES_ONLY] = timed(TREES_ONLY, lambda: down(unassigned=False))
    circuits[DOWN_INTEGRATED] = timed(DOWN_INTEGRATED, lambda: down("integrated"))
    effects = {
        FLAT: timed(FLAT, lambda: flat_effects(model, forests, pairs)),
        INTEGRATED: timed(INTEGRATED, lambda: flat_effects(model, forests, pairs, "integrated")),
    }
    trees = {hook: sae.forest for hook, sae in forests.items()}
    return found | {
        "clean": circuit.clean,
        "patched": circuit.patched,
        "seconds": seconds,
        "visited": {way: each.n_visited for way, each in circuits.items()} | dict.fromkeys(effects, circuit.n_features),
        "errors": [
            sum(node.effect for node in circuit.nodes if node.feature is None and node.level == level)
            for level in range(FINEST + 1)
        ],
        "parents": {
            way: [parents_and_children(trees, own, level) for level in range(FINEST)] for way, own in effects.items()
        },
        "curves": curves(subject, pairs, effects),
    }


def flat_effects(
    model: Any, forests: Mapping[str, Any], pairs: Sequence[Pair], method: Method = "attribution"
) -> dict[str, torch.Tensor]:
    """The effect of every feature of every level, by hook point: (n_features,); arguments as of `find_circuit`."""
    circuit = find_circuit(model, forests, pairs, method, threshold=0.0)
    effects = {hook: torch.zeros(len(levels.forest), dtype=torch.float64) for hook, levels in forests.items()}
    for node in circuit.nodes:
        if node.feature is not None:
            effects[node.hook][node.feature] = node.effect
    return effects


def parents_and_children(
    forests: Mapping[str, FeatureForest], effects: Mapping[str, torch.Tensor], level: int, threshold: float = THRESHOLD
) -> dict[str, float]:
    """Of one boundary: a parent's effect against the sum of its children's, over parents that either is other than 0.

    Returns:
        correlation: Pearson's; with ``shuffled`` parents, too.
        slope: of the sum on the parent's effect, least squares through 0.
        found: share of the children over the threshold whose parent is over it; ``n`` of them, and ``base``, the share
            of all parents of such a level's children, drawn at random, that are over it.
    """
    parent_effects, sums, strong, strong_below, base = [], [], 0, 0, []
    shuffled = []
    for hook, forest in forests.items():
        own, effect = forest.levels[level + 1], effects[hook]
        children = torch.arange(own.start, own.stop)[forest.parents[own] >= 0]
        parents = forest.parents[children]
        for order, into in ((children, sums), (children[torch.randperm(len(children), generator=_seeded())], shuffled)):
            total = torch.zeros_like(effect).index_add(0, parents, effect[order])
            into.append(total[parents.unique()])
        parent_effects.append(effect[parents.unique()])
        over = effect[children].abs() >= threshold
        strong += int(over.sum())
        strong_below += int((effect[parents[over]].abs() >= threshold).sum())
        base.append((effect[parents].abs() >= threshold).float())
    x, y, z = (torch.cat(each).double() for each in (parent_effects, sums, shuffled))
    used, other = (x != 0) | (y != 0), (x != 0) | (z != 0)
    return {
        "correlation": torch.corrcoef(torch.stack([x[used], y[used]]))[0, 1].item(),
        "shuffled": torch.corrcoef(torch.stack([x[other], z[other]]))[0, 1].item(),
        "slope": ((x @ y) / (x @ x)).item(),
        "n": strong,
        "found": strong_below / max(strong, 1),
        "base": torch.cat(base).mean().item(),
    }


def curves(
    subject: Subject, pairs: list[Any], effects: Mapping[str, Mapping[str, torch.Tensor]]
) -> list[dict[str, Any]]:
    """Faithfulness and completeness of the strongest nodes, by how they were chosen; errors stay.

    Args:
        subject: the model and the forests.
        pairs: the behaviour.
        effects: of all features by hook point, by `FLAT` and `INTEGRATED`.
    """
    rows = []
    levels = next(iter(subject.forests.values())).forest.levels
    for level, own in enumerate(levels):
        ablation = Ablation(subject.model, subject.forests, pairs, level)
        everything = {hook: range(levels.n_features) for hook in subject.forests}
        of_level = {"level": level, "none": ablation.none, "all": ablation.all}
        of_level["features_alone"] = ablation.without_errors().faithfulness(everything)
        every_one = dict.fromkeys(subject.forests, range(own.start, own.stop))
        ranked = {way: _ranked({hook: each.abs() for hook, each in effects[way].items()}, every_one) for way in effects}
        if level == FINEST:
            for way, down in ((FLAT, DOWN), (INTEGRATED, DOWN_INTEGRATED)):
                reached = {hook: reached_at(subject.forests[hook].forest, each) for hook, each in effects[way].items()}
                ranked[down] = _ranked(reached, every_one)
        for way, nodes in ranked.items():
            for n in N_NODES:
                among = {"among the strongest": _shared(nodes[:n], ranked[FLAT][:n])}
                rows.append(of_level | _worth(ablation, way, n, nodes[:n]) | among)
        firing = ranked[FLAT][:]
        random.Random(0).shuffle(firing)
        rows.append(of_level | _worth(ablation, "random", N_NODES[-1], firing[: N_NODES[-1]]))
    return rows


def reached_at(forest: FeatureForest, effects: torch.Tensor) -> torch.Tensor:
    """(n_features,) the highest threshold at which going down finds a feature: the least |effect| on its path."""
    reached = effects.abs()
    for own in list(forest.levels)[1:]:
        children = torch.arange(own.start, own.stop)[forest.parents[own] >= 0]
        reached[children] = torch.minimum(reached[children], reached[forest.parents[children]])
    return reached


def _ranked(scores: Mapping[str, torch.Tensor], candidates: Mapping[str, range]) -> list[tuple[str, int]]:
    """Candidates with a score over 0, the highest first."""
    pairs = [(hook, feature) for hook, own in candidates.items() for feature in own if scores[hook][feature] > 0]
    return sorted(pairs, key=lambda each: -scores[each[0]][each[1]].item())


def _shared(nodes: list[tuple[str, int]], others: list[tuple[str, int]]) -> float:
    return len(set(nodes) & set(others)) / max(1, len(nodes))


def _worth(ablation: Ablation, way: str, n: int, nodes: list[tuple[str, int]]) -> dict[str, Any]:
    kept: dict[str, list[int]] = {}
    for hook, feature in nodes:
        kept.setdefault(hook, []).append(feature)
    worth = {"faithfulness": ablation.faithfulness(kept), "completeness": ablation.completeness(kept)}
    return {"way": way, "n": n, "n_kept": len(nodes), **worth}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def circuit_rows(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells as rows of tables: behaviours; parents against children; circuits, as means over behaviours."""
    rows: list[dict[str, Any]] = [
        {
            "behaviour": cell["behaviour"],
            "pairs": cell["pairs"],
            "accuracy": cell["accuracy"],
            "clean": cell.get("clean", "left out"),
            "other prompt": cell.get("patched", "–"),
            "errors' effect, level 0": cell["errors"][0] if "errors" in cell else "–",
            "level 3": cell["errors"][FINEST] if "errors" in cell else "–",
        }
        for cell in cells
    ]
    had = [cell for cell in cells if not cell.get("left_out")]
    for method, level in product((FLAT, INTEGRATED), range(FINEST)):
        own = [cell["parents"][method][level] for cell in had]
        strong = sum(each["n"] for each in own)
        rows.append(
            {
                "effects": "integrated" if method == INTEGRATED else "attribution",
                "parent level": level,
                "r(parent, Σ children)": fmean(each["correlation"] for each in own),
                "shuffled": fmean(each["shuffled"] for each in own),
                "slope": fmean(each["slope"] for each in own),
                "children over the threshold": strong,
                "their parent is, too": sum(each["n"] * each["found"] for each in own) / max(strong, 1),
                "any parent is": fmean(each["base"] for each in own),
            }
        )
    for way in dict.fromkeys(way for cell in had for way in cell["seconds"]):
        visited = [cell["visited"][way] for cell in had if way in cell["visited"]]
        looked_at = {f"level {i}": fmean(each[i] for each in visited) if visited else "–" for i in range(FINEST + 1)}
        rows.append({"way": way} | looked_at | {"seconds": fmean(cell["seconds"][way] for cell in had)})
    kinds = dict.fromkeys((row["level"], row["way"], row["n"]) for cell in had for row in cell["curves"])
    for level, way, n in kinds:
        own = [row for cell in had for row in cell["curves"] if (row["level"], row["way"], row["n"]) == (level, way, n)]
        worth = {name: median(row[name] for row in own) for name in ("faithfulness", "completeness", "features_alone")}
        kept = fmean(row["n_kept"] for row in own)
        among = fmean(row.get("among the strongest", float("nan")) for row in own)
        rows.append({"level": level, "way": way, "nodes": kept, **worth, "among the strongest": among})
    return rows
