"""Auxiliary loss: features that have long been silent reconstruct what the others leave unexplained.

The loss of TopK SAEs (Gao et al., arXiv 2406.04093, §A.2), for each level by itself. With e = x − x̂ of a level, held
constant, and a_S the k largest positive pre-activations among its silent features on a token,

    L_aux = min(1, n_silent / k) · ‖ a_S W_dec,S − e ‖².
"""

from __future__ import annotations

import torch

N_ACTIVE = 64
"""k, silent features that take part on each token."""

SILENT_INTERVALS = 64
"""A feature is silent if it has not fired for this many times n_l / L̂0 tokens, the mean interval between firings."""


MOST_SILENT = 256
"""Features of a level that take part in a step at most: those silent for longest."""


def longest_silent(tokens_since_fired: torch.Tensor) -> torch.Tensor:
    """Those features of a level that have been silent for longest, (min(`MOST_SILENT`, n_l),) int64."""
    return tokens_since_fired.topk(min(MOST_SILENT, len(tokens_since_fired)), sorted=False).indices


def auxiliary_loss(
    error: torch.Tensor, pre: torch.Tensor, W_dec: torch.Tensor, weights: torch.Tensor | None, silent: torch.Tensor
) -> torch.Tensor:
    """L_aux of one level, (), from some of its features: the squared error summed over d_in, mean over the batch.

    Of the error x − x̂ (batch, d_in), held constant; pre-activations (batch, n), n above 0; decoder rows (n, d_in);
    weights of the tokens (batch,), None where all count alike; and which features are silent, (n,) bool: others take no
    part.
    """
    dtype = torch.promote_types(pre.dtype, torch.float32)
    with torch.autocast(pre.device.type, enabled=False):
        positive = pre.to(dtype).relu() * silent
        if pre.shape[1] > N_ACTIVE:
            top = positive.topk(N_ACTIVE, dim=1, sorted=False)
            positive = torch.zeros_like(positive).scatter(1, top.indices, top.values)
        squared = (positive @ W_dec.to(dtype) - error.detach().to(dtype)).square().sum(-1)
        mean = squared.mean() if weights is None else (weights * squared).mean()
        return (silent.sum() / N_ACTIVE).clamp(max=1) * mean
