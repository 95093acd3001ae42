"""Saved SAEs inside SAELens' hooked models, and under SAELens' evaluation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from host_helpers import (
    BRIDGE_HOOK,
    CONTEXT,
    D_MODEL,
    HOOK,
    boot_bridge,
    sae_at,
    tiny_dataset,
    tiny_sae_transformer,
    tiny_tokens,
)
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from small_saes import WIDTHS

from sae_lens_hsae import HierarchicalSAE


class Hooked(NamedTuple):
    model: Any
    sae: HierarchicalSAE

    @property
    def hook(self) -> str:
        return self.sae.cfg.metadata.hook_name or ""


def saved_and_loaded(folder: Path, hook: str, **fields: Any) -> HierarchicalSAE:
    sae_at(hook, prepend_bos=False, context_size=CONTEXT, **fields).save_inference_model(folder)
    loaded = SAE.load_from_disk(folder)
    assert isinstance(loaded, HierarchicalSAE)
    return loaded


# The models are new for each test: once an SAE was attached to a bridge and removed, SAELens' new hook point
# in its place no longer answers to hooks.


@pytest.fixture
def bridge(tmp_path: Path, gpt2: Path) -> Hooked:
    return Hooked(boot_bridge(gpt2), saved_and_loaded(tmp_path, BRIDGE_HOOK))


@pytest.fixture
def sae_transformer(tmp_path: Path) -> Hooked:
    return Hooked(tiny_sae_transformer(), saved_and_loaded(tmp_path, HOOK))


@pytest.fixture(params=["sae_transformer", "bridge"])
def hooked(request: pytest.FixtureRequest) -> Hooked:
    return request.getfixturevalue(request.param)


def whole(sae: HierarchicalSAE) -> SAE[Any]:
    return sae


def level(number: int) -> Callable[[HierarchicalSAE], SAE[Any]]:
    def of(sae: HierarchicalSAE) -> SAE[Any]:
        return sae.level_sae(number)

    return of


every_view = pytest.mark.parametrize("view", [whole, level(0), level(1), level(-1)], ids=["whole", "0", "1", "-1"])


@every_view
@torch.no_grad()
def test_logits_with_the_reconstruction_in_place(hooked, view):
    model, sae, tokens = hooked.model, view(hooked.sae), tiny_tokens(3)
    clean = model(tokens)

    def replace(activations: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
        return sae(activations)

    by_hand = model.run_with_hooks(tokens, fwd_hooks=[(hooked.hook, replace)])
    replaced = model.run_with_saes(tokens, saes=[sae], use_error_term=False)
    torch.testing.assert_close(replaced, by_hand, rtol=1e-4, atol=1e-5)
    assert (replaced - clean).abs().max() > 0.1
    # The SAE is gone afterwards.
    assert torch.equal(model(tokens), clean)


@every_view
@torch.no_grad()
def test_with_the_error_term_the_logits_are_the_models_own(hooked, view):
    model, tokens = hooked.model, tiny_tokens(3)
    corrected = model.run_with_saes(tokens, saes=[view(hooked.sae)], use_error_term=True)
    torch.testing.assert_close(corrected, model(tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_activations_of_all_levels_are_cached(hooked):
    model, sae, tokens = hooked.model, hooked.sae, tiny_tokens(3)
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
    acts = cache[f"{hooked.hook}.hook_sae_acts_post"]
    assert acts.shape == (*tokens.shape, sum(WIDTHS))
    _, plain = model.run_with_cache(tokens, names_filter=[hooked.hook])
    torch.testing.assert_close(acts, sae.encode(plain[hooked.hook]))
    for number, own in enumerate(sae.levels):
        one = sae.level_sae(number)
        _, cache = model.run_with_cache_with_saes(tokens, saes=[one])
        torch.testing.assert_close(cache[f"{hooked.hook}.hook_sae_acts_post"], acts[..., own])


@torch.no_grad()
def test_steering_a_feature_acts_through_the_output_level_only(hooked):
    model, sae, tokens = hooked.model, hooked.sae, tiny_tokens(3)
    clean = model(tokens)

    def logits_with(feature: int) -> torch.Tensor:
        def push(acts: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
            acts[..., feature] += 5
            return acts

        with model.saes(saes=[sae], use_error_term=True):
            return model.run_with_hooks(tokens, fwd_hooks=[(f"{hooked.hook}.hook_sae_acts_post", push)])

    finest, root = sae.cfg.d_sae - 1, 0
    assert (logits_with(finest) - clean).abs().max() > 0.1
    torch.testing.assert_close(logits_with(root), clean, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_bridge_takes_saes_of_hooked_transformer_hook_names(bridge):
    tokens = tiny_tokens(3)
    sae = bridge.sae.level_sae(1)
    expected = bridge.model.run_with_saes(tokens, saes=[sae])
    sae.cfg.metadata.hook_name = HOOK
    assert torch.equal(bridge.model.run_with_saes(tokens, saes=[sae]), expected)
    assert not torch.equal(bridge.model(tokens), expected)


@every_view
def test_attention_heads_are_flattened_and_restored(tmp_path, view):
    hook = "blocks.0.attn.hook_z"
    model: Any = tiny_sae_transformer()
    sae, tokens = view(saved_and_loaded(tmp_path, hook, reshape_activations="hook_z")), tiny_tokens(3)
    with torch.no_grad():
        clean, cache = model.run_with_cache(tokens, names_filter=[hook])
        reconstruction = sae(cache[hook])
        replaced = model.run_with_saes(tokens, saes=[sae])
        corrected = model.run_with_saes(tokens, saes=[sae], use_error_term=True)
    assert reconstruction.shape == cache[hook].shape == (*tokens.shape, 2, D_MODEL // 2)
    assert not torch.allclose(replaced, clean, atol=1e-4)
    torch.testing.assert_close(corrected, clean, rtol=1e-4, atol=1e-4)


def evaluate(hooked: Hooked, sae: SAE[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    # A store of its own each time, so that all are evaluated on the same tokens.
    store = ActivationsStore.from_sae(hooked.model, sae, tiny_dataset(64), store_batch_size_prompts=4)
    return run_evals(
        sae=sae,
        activation_store=store,
        model=hooked.model,
        activation_scaler=ActivationScaler(),
        eval_config=get_eval_everything_config(n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2),
        exclude_special_tokens=False,
    )


def test_evaluation(hooked):
    metrics, features = evaluate(hooked, hooked.sae)
    assert len(features["feature_density"]) == sum(WIDTHS)
    per_level = [evaluate(hooked, hooked.sae.level_sae(number)) for number in range(len(WIDTHS))]
    for (found, of_features), width in zip(per_level, WIDTHS, strict=True):
        quality = found["reconstruction_quality"]
        assert all(math.isfinite(value) for group in found.values() for value in group.values())
        assert quality["explained_variance"] < 1
        assert quality["mse"] > 0
        assert len(of_features["feature_density"]) == width
    # The stack reconstructs from its finest level, and its features are those of all levels.
    finest = per_level[-1][0]
    of_model = ("model_performance_preservation", "model_behavior_preservation")
    for group in ("reconstruction_quality", "shrinkage", *of_model):
        assert metrics[group] == pytest.approx(finest[group], rel=1e-4), group
    assert metrics["reconstruction_quality"] != pytest.approx(per_level[0][0]["reconstruction_quality"], rel=1e-2)
    l0 = [found["sparsity"]["l0"] for found, _ in per_level]
    assert min(l0) > 0
    assert metrics["sparsity"]["l0"] == pytest.approx(sum(l0))
    density = [value for _, of_features in per_level for value in of_features["feature_density"]]
    assert features["feature_density"] == pytest.approx(density)


def test_evaluation_of_another_output_level(sae_transformer, tmp_path):
    coarse = saved_and_loaded(tmp_path / "coarse", HOOK, output_level=0)
    metrics, _ = evaluate(sae_transformer, coarse)
    expected, _ = evaluate(sae_transformer, sae_transformer.sae.level_sae(0))
    assert metrics["reconstruction_quality"] == pytest.approx(expected["reconstruction_quality"], rel=1e-4)
