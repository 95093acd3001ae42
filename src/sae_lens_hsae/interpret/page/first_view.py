"""What the page opens on: the trees that branch into something, and the clear features that stand alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.forest.concepts import Concepts
from sae_lens_hsae.interpret.feature_cache import Dashboards
from sae_lens_hsae.interpret.labels.token_labels import SEPARATOR

MIN_CONCEPTS = 3
NONE_FOUND_AGAIN = 1e-9
"""Stands for the share of edges found again where there is none: far below any."""
CHANCE = 0.5
"""The detection of a name that says nothing."""
WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class FirstView:
    """Which trees the page shows first. A tree goes by its topmost feature, whatever that feature's level.

    Attributes:
        families: topmost features of trees of at least three concepts that branch somewhere, best first: how much the
            children narrow their parents, times the share of words among the strongest tokens, times the mean detection
            by tokens, times the logarithm of the number of different names, times the share of edges found again.
        alone: features of one-concept trees, best first: detection by tokens times the share of words.
    """

    families: torch.Tensor
    alone: torch.Tensor


def first_view(
    dashboards: Dashboards,
    forest: FeatureForest,
    concepts: Concepts,
    detection: torch.Tensor,
    text: Callable[[int], str],
    labels: Mapping[int, str],
    found_again: torch.Tensor | None = None,
) -> FirstView:
    """Rank the trees of a forest for the first view.

    How much a child narrows its parent is `Dashboards.narrowing`. Copies of parents count as their parents; features
    that never fired do not count. ``detection`` is (n_features,), NaN for none; a feature without label goes by its
    strongest token. ``found_again`` is (n_features,), the share of other trainings that have a child's edge; None ranks
    without it.
    """
    n, parents = forest.n_features, forest.parents
    tree = concepts.top_of_tree
    distinct = ~concepts.is_copy & (dashboards.n_firing > 0)
    words = _word_shares(dashboards.strongest_tokens, text)

    narrowing = dashboards.narrowing
    edge = distinct & (parents != NO_PARENT) & narrowing.isfinite()
    size = torch.bincount(tree[distinct], minlength=n)
    above = concepts.parents[distinct & (parents != NO_PARENT)]
    n_children = torch.bincount(above, minlength=n)
    branches = torch.zeros(n, dtype=torch.bool).index_put_((tree[n_children >= 2],), torch.tensor(True))
    n_names = _different(_names(dashboards, labels, text), tree, distinct).clamp(min=1)
    names_hold = _means(detection.nan_to_num(CHANCE), tree, distinct)
    score = _means(narrowing, tree, edge) * _means(words, tree, distinct) * names_hold * n_names.log()
    if found_again is not None:
        # Trees without such an edge keep their order among themselves.
        share = _means(found_again, tree, edge).clamp(min=NONE_FOUND_AGAIN)
        score = torch.where(score < 0, score / share, score * share)
    top = (parents == NO_PARENT) & (dashboards.n_firing > 0)
    families = (top & branches & (size >= MIN_CONCEPTS)).nonzero().flatten()
    alone = (top & (size == 1) & detection.isfinite()).nonzero().flatten()
    return FirstView(_ranked(families, score), _ranked(alone, detection.double() * words))


def _ranked(features: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    return features[score[features].argsort(descending=True, stable=True)]


def _means(values: torch.Tensor, tree: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """(n_features,) mean of the counted values of each tree, at its topmost feature; 0 where none counts."""
    sums = torch.zeros(len(tree), dtype=torch.float64).index_add_(0, tree[counted], values[counted].double())
    return sums / torch.bincount(tree[counted], minlength=len(tree)).clamp(min=1)


def _different(names: Sequence[str], tree: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """(n_features,) float64: how many different names the counted features have, at each tree's topmost one."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    own = torch.tensor([numbers[name] for name in names])
    pairs = torch.stack([tree[counted], own[counted]]).unique(dim=1)
    return torch.bincount(pairs[0], minlength=len(tree)).double()


def _names(dashboards: Dashboards, labels: Mapping[int, str], text: Callable[[int], str]) -> list[str]:
    """The first word of each feature's label; of one without a label, its strongest token."""
    strongest = dashboards.strongest_tokens[:, 0].tolist()
    first = [labels.get(f) or (text(id_) if id_ >= 0 else "") for f, id_ in enumerate(strongest)]
    return [name.split(SEPARATOR)[0].strip().casefold() for name in first]


def _word_shares(strongest_tokens: torch.Tensor, text: Callable[[int], str]) -> torch.Tensor:
    """(n_features,) float64: share of the strongest tokens that are words of at least three letters."""
    known = strongest_tokens >= 0
    ids, where = strongest_tokens.clamp(min=0).unique(return_inverse=True)
    is_word = torch.tensor([bool(WORD.fullmatch(text(int(id_)).strip())) for id_ in ids], dtype=torch.bool)
    return (is_word[where] & known).sum(1).double() / known.sum(1).clamp(min=1)
