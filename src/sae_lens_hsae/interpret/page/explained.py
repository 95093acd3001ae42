"""A text on the page: an explanation in arrays that JavaScript reads as they are. ``assets/text.js`` shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sae_lens_hsae.interpret.explain import Explanation


def explained_block(explanation: Explanation) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Tokens, shares, entries by token, and the ends of the active paths of each token, strongest first.

    Entries and ends of token p stand at ``starts[p] : starts[p + 1]`` and ``endStarts[p] : endStarts[p + 1]``.
    """
    n = len(explanation.tokens)
    ends = [[path[-1] for path in explanation.paths(position)] for position in range(n)]
    counts = np.bincount(explanation.positions.numpy(), minlength=n)
    arrays = {
        "levelShares": explanation.level_shares.numpy().astype(np.float32).ravel(),
        "starts": _starts(counts),
        "features": explanation.features.numpy().astype(np.int32),
        "activations": explanation.activations.numpy().astype(np.float32),
        "shares": explanation.shares.numpy().astype(np.float32),
        "endStarts": _starts(np.array([len(each) for each in ends], dtype=np.int64)),
        "ends": np.array([feature for each in ends for feature in each], dtype=np.int32),
    }
    return {"tokens": list(explanation.tokens), "outlying": list(explanation.outlying)}, arrays


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], counts.cumsum()]).astype(np.int32)
