"""Saved SAEs inside SAELens' hooked models."""

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
    tiny_sae_transformer,
    tiny_tokens,
)
from sae_lens import SAE

from sae_lens_hsae import HierarchicalSAE, evaluate_forest
from sae_lens_hsae.interpret.feature_cache import collect_dashboards


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


both_views = pytest.mark.parametrize(
    "view", [lambda sae: sae, lambda sae: sae.level_sae(1)], ids=["the whole stack", "one level"]
)


@both_views
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


def test_saes_of_attention_heads_are_measured_and_explored(tmp_path):
    hook = "blocks.0.attn.hook_z"
    sae = saved_and_loaded(tmp_path, hook, reshape_activations="hook_z")
    x = torch.randn(6, 8, D_MODEL)
    assert evaluate_forest(sae, sae.forest, [x.flatten(0, 1)]).n_tokens == 48
    with pytest.raises(ValueError, match=r"shape \(48, 16\) .* call turn_off_forward_pass_hook_z_reshaping\(\)"):
        sae(x.flatten(0, 1))
    tokens = torch.zeros(6, 8, dtype=torch.int64)
    assert collect_dashboards(sae, sae.forest, [(tokens, x)], progress=False).n_tokens == 48
    assert sae.reshape_fn_in(torch.zeros(1, 2, D_MODEL // 2))[0].shape[-1] == D_MODEL, "and keep their own setting"


@both_views
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
