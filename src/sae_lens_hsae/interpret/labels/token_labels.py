"""Labels from token statistics: what sets a feature's tokens apart from its parent's and from the background.

They ask no language model. All they need is in the dashboards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array

from sae_lens_hsae.forest import NO_PARENT
from sae_lens_hsae.interpret.feature_cache import Dashboards

SEPARATOR = " · "
MIN_OF_BEST = 0.3
"""A token belongs in the label if its score is at least this share of the best one's."""
FEATURES_AT_ONCE = 4096


def distinctive_tokens(
    dashboards: Dashboards, n_tokens: int = 8, used: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that tell a feature from its parent and from the text at large, best first.

    With p(t) the share of the feature's activation that falls on token t, averaged over the contexts that the
    dashboards keep of it in proportion to their peaks, p'(t) the same for its parent, and q(t) the token's share of all
    kept windows, a token's score is

        p(t) · log(p(t) / max(p'(t), q(t))),

    its part of the divergence from whichever of the two makes it less surprising. Where no token scores above 0,
    as in a child that repeats its parent, p' is left out.

    Args:
        dashboards: of the features.
        n_tokens: most tokens per feature.
        used: says which contexts may be looked at, context numbers → bool of the same shape; None takes all.

    Returns:
        tokens: (features, n_tokens) int32, −1 where there are no more.
        scores: (features, n_tokens) float64 above 0, in nats; 0 where there is no token.

    Raises:
        ValueError: if ``n_tokens`` is not positive.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens} must be at least 1")
    windows = dashboards.token_ids[:, : dashboards.settings.n_family_slots].long()
    if used is not None:
        numbers = dashboards.context_numbers[:, : dashboards.settings.n_family_slots]
        windows = windows.masked_fill(~used(numbers)[..., None], -1)
    n_vocabulary = max(int(windows.max()) + 1, 1)
    background = torch.bincount(windows[windows >= 0], minlength=n_vocabulary).double().numpy()
    background /= max(background.sum(), 1)
    starts = range(0, dashboards.n_features, FEATURES_AT_ONCE)
    shares = [_shares(dashboards, slice(start, start + FEATURES_AT_ONCE), n_vocabulary, used) for start in starts]

    tokens = torch.full((dashboards.n_features, n_tokens), -1, dtype=torch.int32)
    scores = torch.zeros(dashboards.n_features, n_tokens, dtype=torch.float64)
    parents = dashboards.parents.tolist()

    def row(feature: int) -> tuple[np.ndarray, np.ndarray]:
        block, i = shares[feature // FEATURES_AT_ONCE], feature % FEATURES_AT_ONCE
        own = slice(block.indptr[i], block.indptr[i + 1])
        return block.indices[own], block.data[own]

    for feature, parent in enumerate(parents):
        ids, p = row(feature)
        found = p * np.log(p / background[ids])
        if parent != NO_PARENT:
            ids_above, above = row(parent)
            reference = background[ids]
            _, here, there = np.intersect1d(ids, ids_above, return_indices=True)
            reference[here] = np.maximum(reference[here], above[there])
            apart = p * np.log(p / reference)
            found = apart if (apart > 0).any() else found
        best = np.lexsort((ids, -found))[:n_tokens]
        best = best[found[best] > 0]
        tokens[feature, : len(best)] = torch.from_numpy(ids[best].astype(np.int32))
        scores[feature, : len(best)] = torch.from_numpy(found[best])
    return tokens, scores


def token_labels(dashboards: Dashboards, text_of: Callable[[int], str], n_tokens: int = 4) -> dict[int, str]:
    """A label for every feature that fires on tokens of its own: its most distinctive tokens, joined.

    Tokens that differ in case or in the space before them count once; those that are nothing but space are left out.

    Args:
        dashboards: of the features.
        text_of: text of a token id.
        n_tokens: most tokens per label.

    Returns:
        Label by flat feature index; none for a feature of which nothing can be said.
    """
    tokens, scores = distinctive_tokens(dashboards, 4 * n_tokens)
    labels = {}
    for feature, (ids, found) in enumerate(zip(tokens.tolist(), scores.tolist(), strict=True)):
        texts = label_texts(ids, found, text_of, n_tokens)
        if texts:
            labels[feature] = SEPARATOR.join(texts.values())
    return labels


def label_texts(
    ids: Sequence[int], scores: Sequence[float], text_of: Callable[[int], str], n_tokens: int
) -> dict[str, str]:
    """The tokens of one label, best first: text as it is shown, by the form in which texts are compared.

    Args:
        ids, scores: of one feature, from `distinctive_tokens`.
        text_of: text of a token id.
        n_tokens: most tokens.
    """
    texts: dict[str, str] = {}
    for id_, score in zip(ids, scores, strict=True):
        if id_ >= 0 and score >= MIN_OF_BEST * scores[0]:
            text = text_of(id_)
            texts.setdefault(same_text(text), text.strip())
    texts.pop("", None)
    return dict(list(texts.items())[:n_tokens])


def same_text(text: str) -> str:
    """What two tokens have in common that a label does not tell apart: case and the space around them are left out."""
    return text.strip().casefold()


def _shares(
    dashboards: Dashboards, own: slice, n_vocabulary: int, used: Callable[[torch.Tensor], torch.Tensor] | None
) -> csr_array:
    """(features, vocabulary): each feature's activation by token, contexts weighted by peak; rows add up to 1."""
    top, sampled = dashboards.settings.kinds[:2]
    slots = slice(top.start, sampled.stop)
    numbers = dashboards.context_numbers[own, slots]
    counts = numbers >= 0
    if used is not None:
        counts &= used(numbers)
    # A context may be kept as one of the strongest and once more as a sample.
    counts[:, sampled] &= ~(numbers[:, sampled, None] == numbers[:, None, top]).any(2)
    tokens = dashboards.token_ids[own, slots]
    acts = dashboards.activations[own, slots].double() * counts[..., None] * (tokens >= 0)
    tiny = torch.finfo(torch.float64).tiny
    peaks = acts.amax(2, keepdim=True)
    weights = peaks / peaks.sum(1, keepdim=True).clamp(min=tiny)
    shares = acts / acts.sum(2, keepdim=True).clamp(min=tiny) * weights
    feature, slot, place = shares.nonzero(as_tuple=True)
    entries = (shares[feature, slot, place].numpy(), (feature.numpy(), tokens[feature, slot, place].long().numpy()))
    # Turned into rows, entries of one token add up.
    return coo_array(entries, shape=(len(numbers), n_vocabulary)).tocsr()
