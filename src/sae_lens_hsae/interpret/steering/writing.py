"""Text that a causal model writes, for a look at what steering does."""

from __future__ import annotations

from typing import Any

import torch

from sae_lens_hsae.text.hook_point import check_length


@torch.no_grad()
def continued(model: Any, tokens: torch.Tensor, n_tokens: int, temperature: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Token ids (batch, context + n_tokens): each row, and what a causal model writes after it.

    Temperature 0 takes the most likely token. A ValueError if the text would be longer than the model takes. Plain: the
    model reads the whole text for every new token, so it works with whatever hooks stand in it.
    """
    check_length(model, tokens.shape[1] + n_tokens, f"n_tokens={n_tokens} after the text")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_tokens):
        logits = model(tokens)[:, -1].float().cpu()
        if temperature == 0:
            following = logits.argmax(-1, keepdim=True)
        else:
            following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, following.to(tokens.device)], dim=1)
    return tokens


@torch.no_grad()
def perplexity(model: Any, tokens: torch.Tensor, n_given: int) -> torch.Tensor:
    """(batch,) of what stands after the first ``n_given`` ≥ 1 of the tokens (batch, context), by a causal model."""
    log_p = model(tokens).float().log_softmax(-1)[:, n_given - 1 : -1].cpu()
    return (-log_p.gather(-1, tokens[:, n_given:, None].cpu())[..., 0].mean(-1)).exp()
