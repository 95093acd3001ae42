"""The tokens a feature is most typical of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch


@torch.no_grad()
def typical_tokens(
    encode: Callable[[torch.Tensor], torch.Tensor],
    features: list[int],
    activations: Iterable[tuple[torch.Tensor, torch.Tensor]],
    n_vocab: int,
    n_tokens: int = 5,
    min_count: int = 5,
) -> dict[int, list[int]]:
    """For each feature the token ids on which its activation is highest on average, strongest first.

    The average is over all occurrences of the token, also those where the feature is silent: a token counts only if
    the feature fires on it regularly. Activations of either sign count by their size. Tokens
    that occur fewer than ``min_count`` times are left out.

    Args:
        encode: (batch, d_in) → (batch, n_features), for example a ``HierarchicalSAE``'s.
        features: flat indices of the features of interest.
        activations: pairs of activations (batch, d_in) and token ids (batch,).
        n_vocab: size of the vocabulary.
        min_count: occurrences a token needs.

    Returns:
        Token ids per feature, fewer than ``n_tokens`` where it fires on fewer.
    """
    total = torch.zeros(n_vocab, len(features))
    count = torch.zeros(n_vocab)
    for x, token_ids in activations:
        acts = encode(x)[:, features].float().abs().cpu()
        total.index_add_(0, token_ids.cpu(), acts)
        count += torch.bincount(token_ids.cpu(), minlength=n_vocab)
    mean = torch.where((count >= min_count)[:, None], total / count.clamp(min=1)[:, None], 0)
    values, tokens = mean.topk(min(n_tokens, n_vocab), dim=0)
    return {feature: tokens[values[:, i] > 0, i].tolist() for i, feature in enumerate(features)}
