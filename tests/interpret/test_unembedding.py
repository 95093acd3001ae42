"""What a direction does to the logits, against the models' own forward passes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from circuit_helpers import tiny
from host_helpers import HOOKED, hooked, sae_at
from small_saes import make_sae
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from sae_lens_hsae.interpret.feature_cache.unembedding import unembedding_of

D, VOCAB = 16, 30
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32}
FAMILIES = {
    "gpt2": lambda: (GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=2)), "transformer.h.1"),
    "gemma": lambda: (
        Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8)),
        "model.layers.1",
    ),
    "llama": lambda: (LlamaForCausalLM(LlamaConfig(**SIZES)), "model.layers.1"),
}


def wild(model: Any) -> Any:
    """The model with gains and biases that matter, in float64."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 1)
    return model.double().eval()


def check(unembedding: torch.Tensor | None, logits_after: Any, d: int, centred: bool) -> None:
    """Of a residual stream at right angles to the direction the norm changes nothing but by its gain and its length.

    Args:
        logits_after: (d,) the last block's output → its logits.
    """
    assert unembedding is not None
    generator = torch.Generator().manual_seed(2)
    x, direction = torch.randn(2, d, generator=generator, dtype=torch.float64)
    moved = direction - direction.mean() if centred else direction
    x = x - x.mean() if centred else x
    x = x - x @ moved / (moved @ moved) * moved
    step = 0.02  # some norms count in float32
    effect = (logits_after(x + step * direction) - logits_after(x - step * direction)) / (2 * step)
    expected = effect * x.square().mean().sqrt()
    torch.testing.assert_close(direction @ unembedding.double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_hugging_face_models_of_every_kind_of_norm(family):
    torch.manual_seed(0)
    model, hook = FAMILIES[family]()
    model = wild(model)
    sae = make_sae(d_in=D)
    sae.cfg.metadata.hook_name = hook

    @torch.no_grad()
    def logits_after(x: torch.Tensor) -> torch.Tensor:
        def put(_module: Any, _inputs: Any, output: Any) -> Any:
            put_in = x.expand(1, 1, -1)
            return put_in if isinstance(output, torch.Tensor) else (put_in, *output[1:])

        handle = model.get_submodule(hook).register_forward_hook(put)
        try:
            return model(torch.tensor([[3]])).logits[0, 0]
        finally:
            handle.remove()

    found = unembedding_of(sae, SimpleNamespace(model=model))
    check(found, logits_after, D, centred=family == "gpt2")


@pytest.mark.parametrize("kind", ["LN", "LNPre", "RMS", "RMSPre", None])
def test_of_transformer_lens(tokenizer, kind):
    model = tiny(tokenizer, normalization_type=kind)
    hook = "blocks.1.hook_resid_post"
    sae = sae_at(hook)

    @torch.no_grad()
    def logits_after(x: torch.Tensor) -> torch.Tensor:
        def put(value: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001
            return x.expand_as(value)

        return model.run_with_hooks(torch.tensor([[3]]), fwd_hooks=[(hook, put)])[0, 0]

    found = unembedding_of(sae, model)
    if kind is None:
        torch.testing.assert_close(found, model.W_U)
    else:
        check(found, logits_after, model.cfg.d_model, centred=kind.startswith("LN"))


@pytest.mark.parametrize("kind", [kind for kind in HOOKED if kind != "sae_transformer"])
def test_the_ways_of_loading_one_model_agree(kind, gpt2):
    model, hook = hooked(kind, gpt2)
    plain = GPT2LMHeadModel.from_pretrained(gpt2)
    sae = sae_at("transformer.h.0")
    expected = unembedding_of(sae, SimpleNamespace(model=plain))
    found = unembedding_of(sae_at(hook), model)
    assert expected is not None
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
