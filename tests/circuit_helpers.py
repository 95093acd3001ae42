"""A tiny model in float64 with forests at two hook points, and pairs of prompts."""

import dataclasses
from typing import Any

import torch
from host_helpers import D_MODEL, VOCABULARY, sae_at
from sae_lens import HookedSAETransformer
from transformer_lens import HookedTransformerConfig

from sae_lens_hsae.interpret.circuits import Pair

FIRST, SECOND = HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
PAIRS = [
    Pair("w1 w2 w3 w4", "w50", "w51", "w1 w7 w3 w4"),
    Pair("w9 w8 w7", "w52", "w53", "w9 w21 w22"),
    Pair("w5 w2 w6 w11", "w54", "w51", "w5 w30 w6 w11"),
]
ZERO = [dataclasses.replace(pair, patch=None) for pair in PAIRS]


def tiny(tokenizer: Any, **overrides: Any) -> Any:
    """Two blocks with random weights large enough for everything to matter, in float64."""
    options: dict[str, Any] = {"normalization_type": "LN", "act_fn": "gelu", "dtype": torch.float64} | overrides
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=D_MODEL, n_ctx=16, d_head=8, n_heads=2, d_mlp=32, d_vocab=VOCABULARY, **options
    )
    model = HookedSAETransformer(cfg)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.tokenizer = tokenizer
    return model


def stacks(prepend_bos: bool = True) -> dict[str, Any]:
    """At each hook point levels of 4, 9 and 20 with a random forest that fire often."""
    return {hook: sae_at(hook, seed, dtype="float64", prepend_bos=prepend_bos) for seed, hook in enumerate(HOOKS)}


def ids(model: Any, text: str) -> torch.Tensor:
    return torch.tensor([[0, *model.tokenizer(text)["input_ids"]]])


@torch.no_grad()
def read(model: Any, text: str, hook: str) -> torch.Tensor:
    return model.run_with_cache(ids(model, text), names_filter=[hook])[1][hook]
