"""Circuits on a tiny model in float64: effects against finite differences and against patching by hand."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from circuit_helpers import FIRST, HOOKS, PAIRS, SECOND, ZERO, ids, read, stacks, tiny
from host_helpers import sae_at

from experiments.circuits import flat_effects
from sae_lens_hsae.evaluation import level_saes
from sae_lens_hsae.interpret.circuits import (
    Ablation,
    Circuit,
    Edge,
    Pair,
    find_circuit,
    read_pairs,
    with_edges,
)


@torch.no_grad()
def metric(model: Any, pair: Pair, changes: dict[str, Any]) -> float:
    """Logit of answer less foil, x at some hook points changed by functions of x, in a plain run."""
    hooks = [(hook, lambda x, hook, own=own: own(x)) for hook, own in changes.items()]  # noqa: ARG005
    logits = model.run_with_hooks(ids(model, pair.clean), fwd_hooks=hooks)[0, -1]
    return (logits[int(pair.answer[1:])] - logits[int(pair.foil[1:])]).item()


def patched(sae: Any, level: int, feature: int, other: torch.Tensor | None) -> Any:
    """x, decoded by a level with one activation as on another prompt (or 0), its error kept; BOS left alone."""

    def change(x: torch.Tensor) -> torch.Tensor:
        own = sae.level_sae(level)
        acts = own.encode(x)
        error = x - own.decode(acts)
        acts[:, 1:, feature] = 0.0 if other is None else own.encode(other)[:, 1:, feature]
        return own.decode(acts) + error

    return change


def by_hand(model: Any, saes: Any, pairs: list[Pair], hook: str, level: int, feature: int) -> float:
    lost = []
    for pair in pairs:
        other = None if pair.patch is None else read(model, pair.patch, hook)
        change = patched(saes[hook], level, feature, other)
        lost.append(metric(model, pair, {}) - metric(model, pair, {hook: change}))
    return sum(lost) / len(lost)


def each_feature(saes: Any) -> Any:
    for hook in HOOKS:
        for level, own in enumerate(saes[hook].levels):
            for feature in range(own.start, own.stop):
                yield hook, level, feature - own.start, feature


@pytest.mark.parametrize("pairs", [PAIRS, ZERO], ids=["pairs", "zero"])
def test_patching_equals_patching_by_hand(tokenizer, pairs):
    model, saes = tiny(tokenizer), stacks()
    effects = flat_effects(model, saes, pairs, "patch")
    assert all((effect != 0).sum() > 9 for effect in effects.values())
    for hook, level, feature, flat in each_feature(saes):
        expected = by_hand(model, saes, pairs, hook, level, feature)
        assert effects[hook][flat].item() == pytest.approx(expected, abs=1e-10)


@torch.no_grad()
def slope(model: Any, pair: Pair, hook: str, at: torch.Tensor, direction: torch.Tensor, h: float = 1e-5) -> float:
    """Of the metric along a change of x at a hook point, where x stands at ``at``."""
    up, down = (metric(model, pair, {hook: lambda _, sign=sign: at + sign * h * direction}) for sign in (1, -1))
    return (up - down) / (2 * h)


@pytest.mark.parametrize("method", ["attribution", "integrated"])
def test_model_and_saes_may_have_another_precision(tokenizer, method):
    model = tiny(tokenizer)
    single = {hook: sae.to(torch.float32) for hook, sae in stacks().items()}
    effects, expected = flat_effects(model, single, PAIRS, method), flat_effects(model, stacks(), PAIRS, method)
    for hook in HOOKS:
        torch.testing.assert_close(effects[hook].double(), expected[hook].double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pairs", [PAIRS, ZERO], ids=["pairs", "zero"])
@pytest.mark.parametrize("method", ["attribution", "integrated"])
def test_gradients_equal_finite_differences(tokenizer, method, pairs):
    model, saes = tiny(tokenizer), stacks()
    effects = flat_effects(model, saes, pairs, method)
    some = [each for each in each_feature(saes) if each[3] in (0, 2, 3, 5, 8, 12, 14, 20, 31)]
    for hook, level, feature, flat in some:
        sae, expected = saes[hook].level_sae(level), 0.0
        with torch.no_grad():
            for pair in pairs:
                x = read(model, pair.clean, hook)
                other = sae.b_dec.expand_as(x) if pair.patch is None else read(model, pair.patch, hook)
                other = torch.cat([x[:, :1], other[:, 1:]], dim=1)
                change = sae.encode(x)[..., feature, None]
                if pair.patch is not None:
                    change = change - sae.encode(other)[..., feature, None]
                change = change * torch.arange(x.shape[1])[:, None].clamp(max=1)
                along = change * sae.W_dec[feature]
                steps = [1.0] if method == "attribution" else [(k + 0.5) / 10 for k in range(10)]
                expected += sum(slope(model, pair, hook, other + t * (x - other), along) for t in steps) / len(steps)
        assert effects[hook][flat].item() == pytest.approx(expected / len(pairs), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("unassigned", [True, False])
def test_the_way_down_leads_through_parents_over_the_threshold(tokenizer, unassigned):
    model, saes = tiny(tokenizer), stacks()
    effects = flat_effects(model, saes, PAIRS)
    threshold = torch.cat([*effects.values()]).abs().quantile(0.7).item()
    circuit = find_circuit(model, saes, PAIRS, threshold=threshold, unassigned=unassigned)
    expected, n_visited = set(), [0, 0, 0]
    for hook, level, _, feature in each_feature(saes):
        forest = saes[hook].forest
        path = forest.path(feature)
        if not unassigned and path[0] >= 4:
            continue
        over = [abs(effects[hook][each].item()) >= threshold for each in path]
        n_visited[level] += all(over[:-1])
        if all(over):
            expected.add((hook, level, feature))
    assert {(n.hook, n.level, n.feature) for n in circuit.nodes if n.feature is not None} == expected
    assert expected
    assert circuit.n_visited == tuple(n_visited)
    assert circuit.n_features == (8, 18, 40)
    assert sum(n_visited) < 66, "something is left out"
    for node in circuit.nodes:
        if node.feature is not None:
            assert node.effect == pytest.approx(effects[node.hook][node.feature].item(), abs=1e-12)
            assert node.name == saes[node.hook].forest.levels.name(node.feature)
    assert circuit.clean == pytest.approx(sum(metric(model, pair, {}) for pair in PAIRS) / 3)
    assert Circuit.from_dict(json.loads(json.dumps(circuit.to_dict()))) == circuit
    with pytest.raises(ValueError, match="schema=None"):
        Circuit.from_dict({})


@pytest.mark.parametrize("pairs", [PAIRS, ZERO], ids=["pairs", "zero"])
def test_edges_equal_finite_differences_and_add_up_to_the_effect(tokenizer, pairs):
    """x at the second hook point is all that the metric sees, so its nodes carry the whole effect of the first's."""
    model, saes = tiny(tokenizer), stacks()
    circuit = with_edges(model, saes, pairs, find_circuit(model, saes, pairs, threshold=0.0), threshold=0.0)
    edges = {(edge.source, edge.target): edge.effect for edge in circuit.edges}
    assert {(edge.above, edge.below) for edge in circuit.edges} == {HOOKS}
    for node in circuit.nodes:
        if node.hook == FIRST:
            total = sum(effect for (source, _), effect in edges.items() if source == node.name)
            assert total == pytest.approx(node.effect, abs=1e-9)
    strongest = {(edge.level, "error" in edge.source, "error" in edge.target): edge for edge in circuit.edges[::-1]}
    assert len(strongest) == 12
    for edge in strongest.values():
        expected = sum(by_differences(model, saes, pair, edge) for pair in pairs) / len(pairs)
        assert edge.effect == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert Circuit.from_dict(json.loads(json.dumps(circuit.to_dict()))) == circuit
    few = with_edges(model, saes, pairs, circuit, threshold=0.05).edges
    assert few == tuple(edge for edge in circuit.edges if abs(edge.effect) >= 0.05)
    assert 0 < len(few) < len(circuit.edges)


@torch.no_grad()
def by_differences(model: Any, saes: Any, pair: Pair, edge: Edge, h: float = 1e-5) -> float:
    """Moves x by the source's change, sees how the target's part of x moves, and what that does to the metric."""

    def part(hook: str, name: str, x: torch.Tensor) -> torch.Tensor:
        sae, number = saes[hook].level_sae(edge.level), name.split("/")[1]
        acts = sae.encode(x)
        if number == "error":
            return x - sae.decode(acts)
        return acts[..., int(number), None] * sae.W_dec[int(number)]

    change = part(FIRST, edge.source, read(model, pair.clean, FIRST))
    if pair.patch is not None:
        change = change - part(FIRST, edge.source, read(model, pair.patch, FIRST))
    change[:, 0] = 0
    parts, x = [], read(model, pair.clean, SECOND)
    for sign in (1, -1):
        hooks = [(FIRST, lambda x, hook, sign=sign: x + sign * h * change)]  # noqa: ARG005
        with model.hooks(fwd_hooks=hooks):
            parts.append(part(SECOND, edge.target, read(model, pair.clean, SECOND)))
    moved = (parts[0] - parts[1]) / (2 * h)
    moved[:, 0] = 0
    return slope(model, pair, SECOND, x, moved)


@pytest.mark.parametrize("first", ["blocks.0.hook_resid_mid", "blocks.0.hook_attn_out"])
def test_places_are_in_the_order_in_which_the_model_runs(tokenizer, first):
    """Not in that in which it registers them: TransformerLens' MLP comes before the stream that it reads."""
    model, hooks = tiny(tokenizer), (first, "blocks.0.hook_mlp_out")
    forests = {hook: sae_at(hook, seed, dtype="float64", prepend_bos=True) for seed, hook in enumerate(hooks)}
    for given in (forests, dict(reversed(forests.items()))):
        circuit = with_edges(model, given, PAIRS, find_circuit(model, given, PAIRS, threshold=0.0), threshold=0.0)
        assert list(dict.fromkeys(node.hook for node in circuit.nodes)) == list(hooks)
        assert {(edge.above, edge.below) for edge in circuit.edges} == {hooks}
        assert any(abs(edge.effect) > 1e-6 for edge in circuit.edges)


def test_places_side_by_side_have_no_edges(tokenizer):
    model, hooks = tiny(tokenizer, parallel_attn_mlp=True), ("blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    forests = {hook: sae_at(hook, seed, dtype="float64", prepend_bos=True) for seed, hook in enumerate(hooks)}
    found = find_circuit(model, forests, PAIRS, threshold=0.0)
    assert with_edges(model, forests, PAIRS, found).edges == ()


def test_edges_are_of_the_circuits_own_forests(tokenizer):
    model, saes = tiny(tokenizer), stacks()
    circuit = find_circuit(model, saes, PAIRS)
    with pytest.raises(ValueError, match=r"the circuit has nodes at .*blocks.0.hook_resid_post"):
        with_edges(model, {SECOND: saes[SECOND]}, PAIRS, circuit)
    for threshold in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"threshold=.* must be 0 or more"):
            find_circuit(model, saes, PAIRS, threshold=threshold)
        with pytest.raises(ValueError, match=r"threshold=.* must be 0 or more"):
            with_edges(model, saes, PAIRS, circuit, threshold=threshold)


@pytest.mark.parametrize("keep_errors", [True, False])
@pytest.mark.parametrize("level", [0, 2])
def test_ablation_equals_replacing_by_hand(tokenizer, level, keep_errors):
    model, saes = tiny(tokenizer), stacks()
    ablation = Ablation(model, saes, PAIRS, level)
    ablation = ablation if keep_errors else ablation.without_errors()
    assert ablation.all == pytest.approx(sum(metric(model, pair, {}) for pair in PAIRS) / 3, abs=1e-10)
    texts = [text for pair in PAIRS for text in (pair.clean, pair.patch or "")]
    own = saes[FIRST].levels[level]
    kept = {FIRST: [own.start, own.start + 2], SECOND: [own.start + 1]}
    changes = {}
    for hook in HOOKS:
        sae = saes[hook].level_sae(level)
        seen = torch.cat([read(model, text, hook)[0, 1:] for text in texts])
        with torch.no_grad():
            mean, mean_error = sae.encode(seen).mean(0), (seen - sae.decode(sae.encode(seen))).mean(0)

        def change(x, sae=sae, mean=mean, mean_error=mean_error, hook=hook):
            acts = sae.encode(x)
            error = x - sae.decode(acts) if keep_errors else mean_error
            new = mean.expand_as(acts).clone()
            for feature in kept[hook]:
                new[..., feature - own.start] = acts[..., feature - own.start]
            out = sae.decode(new) + error
            out[:, 0] = x[:, 0]
            return out

        changes[hook] = change
    expected = sum(metric(model, pair, changes) for pair in PAIRS) / 3
    assert ablation.metric(kept) == pytest.approx(expected, abs=1e-10)
    share = (expected - ablation.none) / (ablation.all - ablation.none)
    assert ablation.faithfulness(kept) == pytest.approx(share)
    everything = {hook: range(33) for hook in HOOKS}
    assert ablation.completeness(everything) == 0
    if keep_errors:
        assert ablation.faithfulness(everything) == pytest.approx(1)
        assert ablation.completeness({}) == pytest.approx(1)
    for asked in (ablation.metric, ablation.completeness):
        with pytest.raises(ValueError, match=r"features are given at .*elsewhere.*; name the hook points"):
            asked({"elsewhere": [1]})


def test_negative_levels_count_from_the_finest(tokenizer):
    model, saes = tiny(tokenizer), stacks()
    saes[FIRST] = sae_at(FIRST, 5, level_widths=[4, 9], dtype="float64", prepend_bos=True)
    circuit = find_circuit(model, saes, PAIRS, threshold=0.0)
    finest = {FIRST: range(4, 13), SECOND: range(13, 33)}
    assert {hook: set(own) for hook, own in circuit.at(-1).items()} == {hook: set(own) for hook, own in finest.items()}
    assert circuit.at(0) == {FIRST: circuit.at(-2)[FIRST], SECOND: circuit.at(-3)[SECOND]}
    assert Ablation(model, saes, PAIRS).faithfulness(circuit.at(-1)) == pytest.approx(1)
    for level in (3, -4):
        with pytest.raises(IndexError, match=f"level {level} does not exist; choose one from 0 to 2"):
            circuit.at(level)


def test_features_to_keep_exist_and_are_of_the_ablated_level(tokenizer):
    ablation = Ablation(tiny(tokenizer), stacks(), PAIRS, level=1)
    assert ablation.metric({FIRST: ["1/0", 5], SECOND: ["1/8"]}) == ablation.metric({FIRST: [4, "1/1"], SECOND: [12]})
    for asked in (ablation.metric, ablation.faithfulness, ablation.completeness):
        for feature in (-1, 500):
            with pytest.raises(IndexError, match=f"feature {feature} does not exist"):
                asked({FIRST: [4, feature]})
        with pytest.raises(ValueError, match="none of the features given is of level 1, which is ablated"):
            asked({FIRST: [0, 13], SECOND: []})


def test_where_a_level_carries_nothing_faithfulness_is_no_number(tokenizer):
    saes = {SECOND: stacks()[SECOND]}
    saes[SECOND].W_dec.data.zero_()
    ablation = Ablation(tiny(tokenizer), saes, PAIRS)
    assert ablation.all == ablation.none
    assert math.isnan(ablation.faithfulness({SECOND: [13]}))


def test_labels_are_of_nodes_by_index_or_name(tokenizer):
    circuit = find_circuit(tiny(tokenizer), stacks(), PAIRS, threshold=0.0)
    expected = circuit.labelled({FIRST: {5: "dates"}})
    assert [node.name for node in expected.nodes if node.label] == ["1/1"]
    for labels in ({"5": "dates", "weights": "w"}, {"1/1": "dates", "2/99": "of none of the nodes"}):
        assert circuit.labelled({FIRST: labels}) == expected
    with pytest.raises(ValueError, match="labels: feature 'dates' is no name"):
        circuit.labelled({FIRST: {"dates": "5"}})
    with pytest.raises(ValueError, match=r"labels are given at \['elsewhere'\]; the circuit has nodes at"):
        circuit.labelled({"elsewhere": {5: "dates"}})


def test_without_bos_the_first_position_counts(tokenizer):
    saes = {SECOND: stacks(prepend_bos=False)[SECOND]}
    saes[SECOND].cfg.metadata.disable_concat_sequences = True
    assert flat_effects(tiny(tokenizer), saes, [Pair("w4", "w50", "w51")])[SECOND].any()


def of_another_model(saes: Any) -> Any:
    for name, sae in zip(("a", "b"), saes.values(), strict=True):
        sae.cfg.metadata.model_name = name
    return saes


@pytest.mark.parametrize(
    ("pairs", "change", "message"),
    [
        ([], None, "pairs is empty"),
        (PAIRS, lambda _: {}, "forests is empty"),
        ([Pair("w1 w2", "w3", "w4", "w1")], None, "pair 1: .* has 2 tokens and patch='w1' has 1"),
        ([Pair("w1 w2", "w3 w5", "w4", "w1 w5")], None, r"pair 1: answer='w3 w5' has 2 tokens, \['w3', 'w5'\]"),
        ([PAIRS[0], Pair("w1", "w3", "w3", "w2")], None, "pair 2: answer and foil are the same tokens"),
        ([Pair("w1", "w3", "w4", "w1")], None, "pair 1: clean and patch are the same tokens"),
        ([Pair("", "w3", "w4", "w1")], None, "pair 1: a prompt is empty"),
        ([Pair("w1 " * 16, "w3", "w4")], None, "pair 1: clean: 17 tokens, but the model takes at most 16"),
        ([PAIRS[0], ZERO[1]], None, "some pairs have a patch and some have none"),
        (PAIRS, of_another_model, "read different models: .* reads 'a', .* reads 'b'"),
        (PAIRS, lambda saes: {FIRST: saes[SECOND]}, f"given for '{FIRST}' was trained at '{SECOND}'"),
        (PAIRS, lambda saes: {FIRST: level_saes(saes[FIRST])}, r"is a list without a \.forest; circuits take models"),
        (PAIRS, lambda _: {"blocks.7.hook_resid_post": sae_at("blocks.7.hook_resid_post")}, "no hook point"),
    ],
)
@pytest.mark.parametrize("function", [find_circuit, Ablation])
def test_bad_input_is_refused_before_the_model_runs(tokenizer, function, pairs, change, message):
    model, saes = tiny(tokenizer), stacks()
    model.forward = lambda *_: pytest.fail("the model ran")
    with pytest.raises(ValueError, match=message):
        function(model, change(saes) if change else saes, pairs)


def test_pairs_are_read_from_lines(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(dataclasses.asdict(pair)) for pair in (*PAIRS, ZERO[0])) + "\n\n")
    assert read_pairs(path) == [*PAIRS, ZERO[0]]
    odd = dataclasses.replace(PAIRS[0], clean="one\u2028text")  # a line to str.splitlines
    path.write_text(json.dumps(dataclasses.asdict(odd), ensure_ascii=False), encoding="utf-8")
    assert read_pairs(path) == [odd]
    for line in ("{", "[]", '{"clean": "a", "answer": "b"}', '{"clean": "a", "answer": "b", "foil": 1}'):
        path.write_text(line)
        with pytest.raises(ValueError, match=r"pairs\.jsonl', line 1, is no"):
            read_pairs(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no pair"):
        read_pairs(path)
