"""SAE-RSV (arXiv 2509.23799): the features that differ most, without noise, with features near the relevant ones.

The paper asks a language model which features are noise and an embedding model which are near. Here noise is what the
texts do not bear out, or what is named; near are the siblings in the forest.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from sae_lens_hsae.interpret.steering.examples import Examples
from sae_lens_hsae.interpret.steering.selection import Selection, selected

N_FEATURES = 50
STANDARD_ERRORS = 2.0


def sae_rsv(
    examples: Examples,
    level: int = -1,
    among: torch.Tensor | None = None,
    n_features: int = N_FEATURES,
    noise: Collection[int | str] = (),
) -> Selection:
    """The top features by |Δ activation|, less noise, and those of their siblings that differ in the same direction.

    v = Σ Δ activation · d. Noise is a difference within two standard errors of 0, and what ``noise`` names; a sibling
    that is noise does not come in either.

    Arguments and errors as of `sta`, but siblings come in from outside ``among``, too; and:

    Args:
        n_features: how many before noise leaves and siblings come in.
        noise: flat indices or names of features that are beside the point, such as by their labels.

    Raises:
        ValueError: if ``n_features`` is below 1.
    """
    if n_features < 1:
        raise ValueError(f"n_features={n_features} must be at least 1")
    features = examples.of_level(level, among)
    difference = examples.difference
    relevant = borne_out(examples)
    relevant[[examples.forest.index(feature) for feature in noise]] = False
    top = features[difference[features].abs().topk(min(n_features, len(features))).indices]
    kept = set(top[relevant[top]].tolist())
    near = {
        sibling
        for feature in kept
        for sibling in examples.forest.siblings(feature)
        if relevant[sibling] and difference[sibling].sign() == difference[feature].sign()
    }
    chosen = torch.tensor(sorted(kept | near), dtype=torch.int64)
    return selected(chosen, difference[chosen], level, examples.forest)


def borne_out(examples: Examples) -> torch.Tensor:
    """(n_features,) whether the difference is further from 0 than two standard errors."""
    error = sum(each.acts.var(0) / len(each.acts) for each in (examples.positive, examples.negative))
    assert isinstance(error, torch.Tensor)
    return examples.difference.abs() > STANDARD_ERRORS * error.sqrt()
