"""``hsae circuit``: which features of saved SAEs carry a behaviour of their language model."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sae_lens_hsae.cli.collected import open_labelled, page_link
from sae_lens_hsae.cli.outcome import Outcome
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.interpret.circuits import Circuit, Node, find_circuit, read_pairs, with_edges
from sae_lens_hsae.interpret.circuits.pairs import batches_of
from sae_lens_hsae.interpret.circuits.places import check_one_model
from sae_lens_hsae.interpret.feature_cache.text import load_language_model
from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.storage.whole_files import write_whole
from sae_lens_hsae.text.hook_point import check_causal


def run_circuit(chosen: argparse.Namespace) -> Outcome:
    if chosen.edges is not None and not chosen.edges >= 0:
        raise ValueError(f"edges={chosen.edges} must be 0 or more, in logits")
    if chosen.edges is not None and len(chosen.folders) < 2:
        raise ValueError(f"edges={chosen.edges} asks for edges between hook points; give several folders")
    pairs = read_pairs(chosen.pairs)
    output = Path(chosen.output)
    opened = {folder: open_labelled(folder, chosen.device) for folder in chosen.folders}
    check_one_model({folder: sae for folder, (sae, _) in opened.items()})
    by_hook: dict[str, str] = {}
    for folder in chosen.folders:
        hook = str(opened[folder][0].cfg.metadata.hook_name)
        if hook in by_hook:
            raise ValueError(f"{by_hook[hook]} and {folder} both read {hook}; give one SAE for each hook point")
        by_hook[hook] = folder
    forests = {hook: opened[folder][0] for hook, folder in by_hook.items()}
    model = load_language_model(next(iter(forests.values())), *list(forests)[1:])
    prompt = batches_of(pairs, model, next(iter(forests.values())))[0].clean[:1]
    check_causal(model, prompt[:, : max(1, prompt.shape[1] - 1)])
    circuit = find_circuit(model, forests, pairs, chosen.method, chosen.threshold).labelled(
        {hook: opened[folder][1](model.tokenizer) for hook, folder in by_hook.items()}
    )
    beside = {hook: os.path.relpath(folder, output.parent) for hook, folder in by_hook.items()}
    circuit = replace(circuit, folders=beside)
    write_whole(output, json.dumps(circuit.to_dict(), indent=1, ensure_ascii=False))
    if chosen.edges is not None:
        circuit = with_edges(model, forests, pairs, circuit, chosen.edges)
        write_whole(output, json.dumps(circuit.to_dict(), indent=1, ensure_ascii=False))
    return Outcome(
        _text(circuit, {hook: sae.forest for hook, sae in forests.items()}, by_hook, output), circuit.to_dict()
    )


def _text(circuit: Circuit, forests: Mapping[str, FeatureForest], folders: Mapping[str, str], output: Path) -> str:
    others = "against zero" if circuit.patched is None else f"{circuit.patched:.2f} on the others"
    lines = [
        f"{circuit.n_pairs} pairs: the answer leads its foil by {circuit.clean:.2f} logits on the clean prompts, "
        f"{others}; it leads on {circuit.accuracy:.0%}"
    ]
    for hook in dict.fromkeys(node.hook for node in circuit.nodes):
        own = [node for node in circuit.nodes if node.hook == hook]
        errors = "  ".join(f"{node.level}: {node.effect:.2f}" for node in own if node.feature is None)
        lines += ["", f"{hook}  (errors of the levels: {errors})"]
        features = [node for node in own if node.feature is not None]
        lines += _trees(features, forests[hook]) or ["  no feature"]
        link = page_link(folders[hook], features[0].name) if features else None
        lines += [] if link is None else [f"  Open one: {link}"]
    lines += _edges(circuit)
    seen = "  ".join(
        f"level {level}: {visited:,} of {there:,}"
        for level, (visited, there) in enumerate(zip(circuit.n_visited, circuit.n_features, strict=True))
    )
    on_page = f"hsae explore {next(iter(folders.values()))} --circuit {output} puts it on the page"
    return "\n".join([*lines, "", f"Features looked at: {seen}", f"Written to {output}; {on_page}"])


def _edges(circuit: Circuit) -> list[str]:
    """A line per edge between features; errors' edges are many, and stand in the file."""
    shown = [edge for edge in circuit.edges if not (edge.source.endswith("error") or edge.target.endswith("error"))]
    lines = [f"  {each.effect:+.2f}  {each.above} {each.source} → {each.below} {each.target}" for each in shown]
    return ["", f"{len(circuit.edges)} edges, between features:", *lines] if circuit.edges else []


def _trees(nodes: Sequence[Node], forest: FeatureForest) -> list[str]:
    """A line per node, children below their parents."""
    by_feature = {node.feature: node for node in nodes if node.feature is not None}
    tops = [feature for feature in by_feature if forest.parent(feature) not in by_feature]
    lines: list[str] = []

    def add(feature: int, depth: int) -> None:
        node = by_feature[feature]
        lines.append(f"{'  ' * (depth + 1)}{node.effect:+.2f}  {node.name}  {printable(node.label)}".rstrip())
        for child in by_feature:
            if forest.parent(child) == feature:
                add(child, depth + 1)

    for top in tops:
        add(top, 0)
    return lines
