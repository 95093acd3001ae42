"""Clarity: whether a feature fires on the same tokens wherever it fires. It asks no language model."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array

from sae_lens_hsae.interpret.feature_cache.format import Dashboards

FEATURES_AT_ONCE = 4096


def clarity(dashboards: Dashboards) -> torch.Tensor:
    """How much alike the contexts are that a feature fires on: 1 if always on the same tokens, 0 if never.

    A context is taken as a vector over the vocabulary, the feature's activation on each token. Clarity is the mean
    cosine of two different ones of the contexts that the dashboards keep, the strongest and those from across the range
    of activations. So it is high for features of a few tokens, and low for those of many, however clear their
    common meaning may be to a reader.

    Returns:
        (features,) float64; NaN for a feature with fewer than two contexts.
    """
    parts = [
        _clarity(dashboards, slice(start, start + FEATURES_AT_ONCE))
        for start in range(0, dashboards.n_features, FEATURES_AT_ONCE)
    ]
    return torch.cat(parts)


def _clarity(data: Dashboards, own: slice) -> torch.Tensor:
    slots = slice(data.settings.n_family_slots)
    acts = data.activations[own, slots].double() * data.distinct_contexts(own, slots)[..., None]
    acts[data.token_ids[own, slots] < 0] = 0
    feature, slot, place = acts.nonzero(as_tuple=True)
    context = feature * acts.shape[1] + slot
    token = data.token_ids[own, slots][feature, slot, place].long()
    shape = (acts.shape[0] * acts.shape[1], int(token.max()) + 1 if len(token) else 1)
    # Turned into rows, entries of one place add up: a token may stand in a context more than once.
    vectors = coo_array((acts[feature, slot, place].numpy(), (context.numpy(), token.numpy())), shape=shape).tocsr()
    norms = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    entries = vectors.tocoo()
    unit = entries.data / norms[entries.row]
    # The mean cosine of all pairs follows from the length of the sum: ‖Σ v‖² = n + Σ of the cosines of all pairs.
    sums = coo_array((unit, (entries.row // acts.shape[1], entries.col)), shape=(acts.shape[0], shape[1])).tocsr()
    square = torch.from_numpy(np.asarray(sums.multiply(sums).sum(axis=1)))
    n = torch.from_numpy(norms).view(acts.shape[0], -1).gt(0).sum(1).double()
    # No cosine is below 0, but rounding is.
    return ((square - n) / (n * (n - 1))).clamp(min=0).masked_fill(n < 2, torch.nan)
