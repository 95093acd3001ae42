"""Steering SAELens' hooked models: what is added to x, and that nothing stays behind."""

import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from host_helpers import (
    BRIDGE_HOOK,
    CONTEXT,
    D_MODEL,
    HOOK,
    HOOKED,
    activations_at,
    boot_bridge,
    hooked,
    sae_at,
    tiny_dataset,
    tiny_sae_transformer,
    tiny_tokens,
)
from other_device import TwoDevices, moved
from sae_lens import SAE, ActivationsStore, StandardSAE, StandardSAEConfig
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

from experiments.circuits import flat_effects
from sae_lens_hsae import FeatureForest
from sae_lens_hsae.evaluation import cross_entropy_recovered, level_saes
from sae_lens_hsae.interpret.circuits import Ablation, Pair, find_circuit, with_edges
from sae_lens_hsae.interpret.contrast import text_activations
from sae_lens_hsae.interpret.explain import explain
from sae_lens_hsae.interpret.steering import Edit, ablate, add, clamp, effect_of, scale, steer
from sae_lens_hsae.interpret.steering.edits import steps_of
from sae_lens_hsae.interpret.steering.steer import edited

BRIDGE_NAMES = {HOOK: BRIDGE_HOOK, "blocks.1.hook_mlp_out": "blocks.1.mlp.hook_out"}
"""HookedTransformer's names of hook points, and TransformerBridge's."""


def stack(hook: str, d_in: int = D_MODEL) -> Any:
    """Feature 0 is the parent of 4 and 5, and 4 of 13 and 14."""
    sae = sae_at(hook, d_in=d_in)
    sae.parents.fill_(-1)
    for child, parent in {4: 0, 5: 0, 13: 4, 14: 4}.items():
        sae.parents[child] = parent
    return sae


@pytest.fixture
def model_and_sae(request, gpt2) -> Any:
    model, hook = hooked(request.param, gpt2)
    return model, stack(hook)


EDITS: dict[str, tuple[list[Edit], Any]] = {
    # The change of each flat feature's activation a, straight from the edit's meaning.
    "push": ([add(5, 3.0)], lambda _: {5: 3.0}),
    "ablate": ([ablate(0)], lambda a: {0: -a[..., 0]}),
    "scale and clamp": ([scale(1, 2.5), clamp(20, 0.7)], lambda a: {1: 1.5 * a[..., 1], 20: 0.7 - a[..., 20]}),
    "in order": ([clamp(2, 2.0), scale(2, 3.0), add(2, 1.0)], lambda a: {2: 7 - a[..., 2]}),
    "children": ([ablate(0, on="children")], lambda a: {4: -a[..., 4], 5: -a[..., 5]}),
    "leaves": ([ablate(0, on="subtree")], lambda a: {f: -a[..., f] for f in (5, 13, 14)}),
}


@pytest.mark.parametrize("model_and_sae", HOOKED, indirect=True)
@pytest.mark.parametrize("name", EDITS)
def test_x_moves_along_the_decoder_by_the_change_of_the_activations(model_and_sae, name):
    model, sae = model_and_sae
    edits, changes = EDITS[name]
    hook: Any = sae.cfg.metadata.hook_name
    hook = BRIDGE_NAMES.get(hook, hook) if isinstance(model, SAETransformerBridge) else hook
    x = activations_at(model, hook)
    with torch.no_grad():
        acts = torch.cat([sae.level_sae(level).encode(x) for level in range(3)], dim=-1)
        expected = x.clone()
        for feature, change in changes(acts).items():
            assert name == "push" or change.abs().max() > 0, "the feature fires, else nothing is tested"
            expected += torch.as_tensor(change)[..., None] * sae.W_dec[feature]
        clean = model(tiny_tokens(2))
        with steer(model, sae, edits):
            torch.testing.assert_close(activations_at(model, hook), expected, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(model(tiny_tokens(2)), clean)
        assert torch.equal(model(tiny_tokens(2)), clean)


@pytest.mark.parametrize(
    "fields",
    [{"normalize_activations": "layer_norm"}, {"normalize_activations": "constant_norm_rescale"}],
    ids=lambda fields: fields["normalize_activations"],
)
def test_saes_that_scale_x_by_themselves_change_it_by_what_they_reconstruct(fields):
    sae: Any = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=12, **fields))
    sae.W_enc.data, sae.W_dec.data = torch.randn(D_MODEL, 12), torch.randn(12, D_MODEL)
    x = 10 * torch.randn(5, D_MODEL)
    forest = FeatureForest([-1] * 12, [12])
    with torch.no_grad():
        moved = edited(x, [sae], steps_of([ablate(3)], [sae], forest, None)) - x
        acts = sae.encode(x)
        without = acts.clone()
        without[:, 3] = 0
        assert acts[:, 3].any()
        expected = sae.decode(without)
        sae.encode(x)
        torch.testing.assert_close(moved, expected - sae.decode(acts), rtol=1e-4, atol=1e-4)


def test_a_spread_push_has_the_norm_of_the_direct_one():
    model, sae = tiny_sae_transformer(), stack(HOOK)
    typical = torch.arange(33).float() + 1
    x = activations_at(model, HOOK)
    with torch.no_grad():
        cases: list[tuple[Any, list[int]]] = [("children", [4, 5]), ("subtree", [5, 13, 14])]
        for on, reached in cases:
            direction = sum(typical[f] * sae.W_dec[f] for f in reached)
            assert isinstance(direction, torch.Tensor)
            with steer(model, sae, [add(0, 2.0, on=on)], typical=typical):
                moved = activations_at(model, HOOK) - x
            torch.testing.assert_close(moved, (2 * direction / direction.norm()).expand_as(moved), rtol=1e-4, atol=1e-5)


def test_hooks_are_removed_after_an_exception_and_others_stay():
    model, sae = tiny_sae_transformer(), stack(HOOK)
    model.add_hook(HOOK, lambda tensor, *, hook: None)  # noqa: ARG005
    n_hooks = len(model.hook_dict[HOOK].fwd_hooks)
    with pytest.raises(RuntimeError, match="inside"), steer(model, sae, [ablate(0)]):
        raise RuntimeError("inside")
    assert len(model.hook_dict[HOOK].fwd_hooks) == n_hooks == 1


@torch.no_grad()
def steered(model: Any, sae: Any) -> torch.Tensor:
    with steer(model, sae, [add(5, 9.0)]):
        return model(tiny_tokens(2))


def carried(model: Any, sae: Any) -> Any:
    """Of a circuit the features' effects, and what is left without them."""
    forests = {sae.cfg.metadata.hook_name: sae}
    pairs = [Pair("w1 w2 w3", "w50", "w51", "w1 w7 w3")]
    (effects,) = flat_effects(model, forests, pairs).values()
    assert effects.abs().max() > 0.01
    return [*effects.tolist(), Ablation(model, forests, pairs).none]


def lost(model: Any, sae: Any) -> Any:
    sae.cfg.metadata.prepend_bos = False
    store = ActivationsStore.from_sae(model, sae, tiny_dataset(20), context_size=CONTEXT, store_batch_size_prompts=4)
    levels = cross_entropy_recovered(sae, model, store, n_batches=1, exclude_special_tokens=False)
    return [(level.with_level, level.ablated) for level in levels]


READERS: dict[str, Any] = {
    "steer": steered,
    "effect_of": lambda model, sae: asdict(effect_of(model, sae, [add(5, 9.0)], tiny_tokens(2), target=5)),
    "explain": lambda model, sae: explain(sae, model, "w1 w2 w3").shares,
    "text_activations": lambda model, sae: next(text_activations(sae, model, ["w1 w2 w3"])),
    "circuits": carried,
    "cross_entropy_recovered": lost,
}
"""Whatever reads a model at an SAE's hook point."""


@pytest.mark.parametrize("alias", BRIDGE_NAMES)
@pytest.mark.parametrize("reader", READERS)
def test_a_bridge_takes_the_names_of_hooked_transformer_everywhere(gpt2, reader, alias):
    own, plain = (READERS[reader](boot_bridge(gpt2), stack(hook)) for hook in (BRIDGE_NAMES[alias], alias))
    torch.testing.assert_close(plain, own, rtol=0, atol=0)


def linked(model: Any, sae: Any) -> Any:
    """Of a circuit by every method its effects, and its edges to the next hook point."""
    forests = {HOOK: sae, "blocks.1.hook_resid_post": sae_at("blocks.1.hook_resid_post", 1)}
    found = []
    for method in ("attribution", "integrated", "patch"):
        for pairs in ([Pair("w1 w2 w3", "w50", "w51", "w1 w7 w3")], [Pair("w1 w2 w3", "w50", "w51")]):
            circuit = find_circuit(model, forests, pairs, method, threshold=0.2)
            found += [node.effect for node in circuit.nodes]
            if method == "attribution":
                found += [edge.effect for edge in with_edges(model, forests, pairs, circuit).edges]
    return found


@pytest.mark.parametrize("reader", ["steer", "effect_of", "explain", "circuits", "linked"])
def test_saes_and_model_may_be_on_different_devices(reader, tokenizer, monkeypatch):
    def on_two(*arguments: Any) -> Any:
        return [moved(each) for each in level_saes(*arguments)]

    model: Any = tiny_sae_transformer()
    model.tokenizer = tokenizer
    expected = (READERS | {"linked": linked})[reader](model, stack(HOOK))
    monkeypatch.setattr("sae_lens_hsae.text.hook_point.level_saes", on_two)
    with TwoDevices():
        found = (READERS | {"linked": linked})[reader](model, stack(HOOK))
    torch.testing.assert_close(found, expected)


def test_a_hook_point_that_nothing_comes_by_is_told(gpt2):
    """A bridge that an SAE was attached to and detached from has a new hook point there, which nothing reaches."""
    model, sae = boot_bridge(gpt2), stack(HOOK)
    model.run_with_saes(tiny_tokens(1), saes=[sae.level_sae(0)])
    with pytest.warns(UserWarning, match="nothing was steered"), steer(model, sae, [ablate(0)]):
        model(tiny_tokens(1))
    with pytest.raises(ValueError, match=r"not through its hook point 'blocks\.0\.hook_out'; load it anew"):
        effect_of(model, sae, [ablate(0)], tiny_tokens(1), target=0)
    with pytest.raises(ValueError, match=r"not through its hook point 'blocks\.0\.hook_out'; load it anew"):
        lost(model, sae)


def test_an_sae_that_stands_at_the_hook_point_is_to_be_detached(gpt2):
    for model in (boot_bridge(gpt2), tiny_sae_transformer()):
        sae = stack(HOOK)
        model.add_sae(sae.level_sae(0))
        with pytest.raises(ValueError, match="detach an SAE"), steer(model, sae, [ablate(0)]):
            pass


def test_heads_are_edited_as_one_vector():
    hook = "blocks.0.attn.hook_z"
    model, sae = tiny_sae_transformer(), stack(hook)
    x = activations_at(model, hook)
    with torch.no_grad(), steer(model, sae, [add(5, 3.0)]):
        moved = activations_at(model, hook) - x
    torch.testing.assert_close(moved.flatten(2), (3 * sae.W_dec[5]).expand(2, CONTEXT, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pushed", [4, 13])
def test_effects_of_coarse_and_fine_pushes_of_one_norm_equal_plain_computation(pushed):
    """Feature 4 is the parent of 13; both are pushed by the same norm and judged by the same target."""
    model: Any = tiny_sae_transformer()
    sae = stack(HOOK)
    tokens = tiny_tokens(3)
    found = effect_of(model, sae, [add(pushed, 4.0)], tokens, target=4)
    with torch.no_grad():
        without, cache = model.run_with_cache(tokens)
        on = sae.level_sae(1).encode(cache[HOOK])[..., 0] > 0
        clean = model(tokens, return_type="loss", loss_per_token=True)
        with steer(model, sae, [add(pushed, 4.0)]):
            changed = model(tokens, return_type="loss", loss_per_token=True)
            logits, cache_after = model.run_with_cache(tokens)
    assert (found.n_on, found.n_off) == (int(on.sum()), int((~on).sum()))
    assert min(found.n_on, found.n_off) > 0
    assert found.norm == pytest.approx(4.0, rel=1e-4)
    p, q = (torch.distributions.Categorical(logits=each) for each in (without, logits))
    kl = torch.distributions.kl_divergence(p, q)
    change = (logits - without).norm(dim=-1) / without.norm(dim=-1)
    for tokens_of, name in ((on, "on"), (~on, "off")):
        rise = (changed - clean)[tokens_of[:, :-1]].mean().item()
        assert getattr(found, f"loss_{name}") == pytest.approx(rise, rel=1e-3, abs=1e-6)
        assert getattr(found, f"kl_{name}") == pytest.approx(kl[tokens_of].mean().item(), rel=1e-3)
        assert getattr(found, f"change_{name}") == pytest.approx(change[tokens_of].mean().item(), rel=1e-3)
    moved = torch.zeros(33)
    for level, own in enumerate(sae.levels):
        before, after = (sae.level_sae(level).encode(each[HOOK]).detach() for each in (cache, cache_after))
        moved[own] = (after - before).abs().flatten(0, 1).sum(0)
    family = [0, 4, 13, 14]  # the target's parent, itself, its children
    assert found.family_share == pytest.approx((moved[family].sum() / moved.sum()).item(), rel=1e-3)
    assert 0 < found.family_share < 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"edits": []}, ValueError, "edits is empty"),
        ({"edits": [ablate(33)]}, IndexError, "feature 33 does not exist"),
        ({"edits": [ablate(13, on="children")]}, ValueError, "feature 13 has no children"),
        ({"edits": [add(0, 1.0, on="children")]}, ValueError, "pass typical of shape"),
        ({"forest": FeatureForest([-1], [1])}, ValueError, "level_widths"),
        ({"levels": level_saes(stack(HOOK))}, ValueError, r"pass FeatureForest\.from_saes\(levels"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(change, error, message):
    arguments: dict[str, Any] = {"levels": stack(HOOK), "edits": [ablate(0)]} | change
    with pytest.raises(error, match=message), steer(tiny_sae_transformer(), **arguments):
        pass


def test_features_may_be_given_by_name():
    model, sae, tokens = tiny_sae_transformer(), stack(HOOK), tiny_tokens(2)
    typical = torch.arange(33).float() + 1
    kinds: Any = (lambda f: add(f, 3.0), lambda f: add(f, 3.0, on="children"), lambda f: scale(f, 3.0, on="subtree"))
    for kind in kinds:
        logits = []
        for feature in (0, "0/0"):
            with torch.no_grad(), steer(model, sae, [kind(feature)], typical=typical):
                logits.append(model(tokens))
        assert torch.equal(*logits)
    found = [effect_of(model, sae, [add(feature, 3.0)], tokens, target=feature) for feature in (14, "2/1")]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="feature 'dates' is no name"):
        effect_of(model, sae, [add(0, 3.0)], tokens, target="dates")


def test_wrong_edits_are_refused():
    with pytest.raises(ValueError, match="must be a finite number"):
        add(0, float("nan"))
    with pytest.raises(ValueError, match="clamp each feature by itself"):
        Edit(0, "clamp", 1.0, "children")


def test_the_example_steers_a_causal_model(gpt2, tmp_path, capsys, monkeypatch):
    sae = stack("transformer.h.0")
    sae.cfg.metadata.model_name = str(gpt2)
    sae.cfg.metadata.model_class_name = "AutoModelForCausalLM"
    sae.save_inference_model(tmp_path / "sae")
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "steer.py"))
    name = sae.forest.levels.name(13)
    arguments = ["steer.py", str(tmp_path / "sae"), name, "--amount", "50", "--prompt", "w1 w2 w3", "--n-tokens", "4"]
    monkeypatch.setattr("sys.argv", arguments)
    example["main"]()
    lines = capsys.readouterr().out.splitlines()
    names, texts = zip(*(line.split(":") for line in lines[:2]), strict=True)
    assert names == ("as it is", "pushed")
    assert all(text.strip().startswith("w1 w2 w3 ") for text in texts)
    assert texts[0].strip() != texts[1].strip()
    loaded: Any = SAE.load_from_disk(tmp_path / "sae")
    path = loaded.forest.path(13)
    assert len(path) > 1
    named = [loaded.forest.levels.named(line.split()[0]) for line in lines[3:]]
    assert named == path, "coarse to fine"
