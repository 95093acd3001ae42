"""From the residual stream to logits: what a direction does to every token, by itself."""

from __future__ import annotations

import re
from typing import Any

import torch
from sae_lens import SAE

BLOCK = re.compile(r"(^|\.)(h|layers?|blocks?)\.\d+$")
"""Names that Hugging Face gives to a transformer's blocks."""
RESIDUAL = re.compile(r"resid|^blocks\.\d+\.hook_(in|out)$")
"""The residual stream as TransformerLens and its bridge name it."""


def unembedding_of(sae: SAE[Any], model: Any) -> torch.Tensor | None:
    """(d_in, vocabulary) from the residual stream to logits; None where the model or the SAE has no such place.

    It holds the head and what the norm before it does to a direction: its gain, and for a LayerNorm the centring. What
    the norm divides by depends on the token, so effects are relative.

    Args:
        model: TransformerLens', or a Hugging Face model as SAELens wraps it. Of the latter the output of a block counts
            as the residual stream, and the head must be one linear map of it: BERT's, which is more, does not count.
    """
    hook = str(sae.cfg.metadata.hook_name)
    head = getattr(model, "W_U", None)
    if isinstance(head, torch.Tensor):
        fits = head.ndim == 2 and head.shape[0] == sae.cfg.d_in and RESIDUAL.search(hook)
        return _through(getattr(model, "ln_final", None), head.detach()) if fits else None
    inner: Any = getattr(model, "model", None)
    if not hasattr(inner, "get_output_embeddings") or not BLOCK.search(hook):
        return None
    linear = inner.get_output_embeddings()
    fits = isinstance(linear, torch.nn.Linear) and linear.in_features == sae.cfg.d_in
    if not fits or all(linear is not child for child in inner.children()):
        return None
    return _through(_last_norm(inner.get_submodule(BLOCK.sub("", hook))), linear.weight.detach().T)


def _last_norm(transformer: torch.nn.Module) -> torch.nn.Module | None:
    """The norm that stands beside the blocks; the last one, where the embeddings have another."""
    norms = [child for child in transformer.children() if "norm" in type(child).__name__.lower()]
    return norms[-1] if norms else None


@torch.no_grad()
def _through(norm: torch.nn.Module | None, head: torch.Tensor) -> torch.Tensor:
    """The head (d_in, vocabulary) for directions that have yet to pass the norm.

    The gain is asked of the norm itself, as models store it in different ways. Of ±1, whose mean is 0 and mean square
    1, a norm makes ±gain + bias.
    """
    if norm is None:
        return head
    ones = torch.ones(len(head), dtype=torch.float32, device=head.device)
    signs = ones.clone()
    signs[1::2] = -1
    parameter = next(norm.parameters(), head)

    def normed(x: torch.Tensor) -> torch.Tensor:
        return norm(x.to(parameter)[None, None])[0, 0].to(ones)

    gain = (normed(signs) - normed(-signs)) * signs / 2
    bias = (normed(signs) + normed(-signs)) / 2
    head = gain.to(head)[:, None] * head
    # Nothing is left of a vector of ones where the mean is taken off.
    centres = (normed(ones) - bias).norm() < 0.5 * gain.norm()
    return head - head.mean(0) if centres else head
