"""Is a forest true? The pairs of concepts that it claims, against the true hierarchy.

The hierarchy metrics (`evaluate_forest`) measure whether a forest agrees with itself, these whether it is right.
Features are first matched to the concepts of the generator (`match_features`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from experiments.planted.absorption import Absorption, check_parents
from experiments.planted.concept_matching import NO_CONCEPT, ConceptMatches
from sae_lens_hsae.forest import NO_PARENT, FeatureForest


@dataclass(frozen=True)
class PairScore:
    """A set of pairs (concept, concept above it) against the true one.

    Attributes:
        n_true: true pairs.
        n_claimed: pairs that the forest claims.
        n_correct: pairs in both.
        precision: correct among claimed; NaN if none is claimed.
        recall: correct among true; NaN if there is none, or if no feature was matched.
        f1: harmonic mean of both, 0 if none is correct; NaN where ``recall`` is.
    """

    n_true: int
    n_claimed: int
    n_correct: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class TreeRecovery:
    """What of a known hierarchy a forest recovered.

    Attributes:
        direct: pairs (child, parent).
        ancestors: pairs (concept, ancestor): the transitive closures of the claimed and of the true direct pairs.
        n_concepts: concepts of the generator, also those outside all trees.
        concepts_found: share of all concepts that a feature of any level stands for.
        n_edges: edges of the forest.
        n_matched_edges: those between two features that stand for concepts.
        n_identity_edges: those that join a concept to its own copy one level up.
        identity_share: ``n_identity_edges`` over ``n_edges``; NaN without edges.
        absorption: from `measure_absorption`; None if it was not measured.
    """

    direct: PairScore
    ancestors: PairScore
    n_concepts: int
    concepts_found: float
    n_edges: int
    n_matched_edges: int
    n_identity_edges: int
    identity_share: float
    absorption: Absorption | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; NaN becomes None."""
        return _plain(asdict(self))


def score_recovery(
    forest: FeatureForest,
    matches: ConceptMatches,
    true_parents: torch.Tensor,
    absorption: Absorption | None = None,
) -> TreeRecovery:
    """Score the pairs of concepts that a forest claims.

    Each matched feature claims one pair: its concept under that of the nearest feature above it which stands for
    another concept. Features of its own concept on the way are copies at coarser levels, and skipped. So are unmatched
    features: they stand for nothing that the true hierarchy knows of, and what is above them is above the feature all
    the same. A concept with several features may thus claim several parents, and each counts. Direct is a pair only
    if no concept stands between its two in truth, whether that was found or not.

    Args:
        forest: over the features that ``matches`` are of.
        matches: which concept each feature stands for.
        true_parents: (n_concepts,) integers, each concept's parent, -1 for none.
        absorption: to be part of the result.

    Raises:
        ValueError: if forest, matches and parents do not fit together, or the parents hold a cycle.
    """
    if forest.level_widths != matches.level_widths:
        raise ValueError(
            f"the forest has level_widths={list(forest.level_widths)}, but matches are of features with "
            f"level_widths={list(matches.level_widths)}; match the levels that the forest is of"
        )
    n = matches.n_concepts
    check_parents(true_parents, n)
    true_parents = true_parents.detach().to("cpu", torch.int64)
    parents, concepts = forest.parents, matches.concept_of.cpu()
    is_child, matched, edges = true_parents != NO_PARENT, concepts != NO_CONCEPT, parents != NO_PARENT

    truth = _pairs(is_child.nonzero().flatten(), true_parents[is_child], n)
    above = _concept_above(parents, concepts)
    claims = matched & (above != NO_CONCEPT)
    claimed = _pairs(concepts[claims], above[claims], n)

    joined = edges & matched & matched[parents]
    n_identities = int((joined & (concepts == concepts[parents])).sum())
    found = torch.zeros(n, dtype=torch.bool)
    found[concepts[matched]] = True
    recall_defined = bool(len(truth)) and bool(matched.any())
    return TreeRecovery(
        direct=_score(claimed, truth, recall_defined),
        ancestors=_score(_closure(claimed, n), _closure(truth, n), recall_defined),
        n_concepts=n,
        concepts_found=_share(int(found.sum()), n),
        n_edges=int(edges.sum()),
        n_matched_edges=int(joined.sum()),
        n_identity_edges=n_identities,
        identity_share=_share(n_identities, int(edges.sum())),
        absorption=absorption,
    )


def _concept_above(parents: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
    """(n_features,) the first other concept on each feature's way up, -1 if there is none."""
    above = parents.clone()
    # Each round climbs one level, for all features at once.
    while True:
        skipped = (above != NO_PARENT) & ((concepts[above] == NO_CONCEPT) | (concepts[above] == concepts))
        if not skipped.any():
            return torch.where(above == NO_PARENT, NO_CONCEPT, concepts[above])
        above = torch.where(skipped, parents[above], above)


def _pairs(below: torch.Tensor, above: torch.Tensor, n_concepts: int) -> torch.Tensor:
    """The set of pairs, as sorted codes ``below · n_concepts + above``."""
    return torch.unique(below * n_concepts + above)


def _closure(pairs: torch.Tensor, n_concepts: int) -> torch.Tensor:
    """Transitive closure of a set of pairs; no concept is above itself, not even where claims form a cycle."""
    ends = torch.stack([pairs // n_concepts, pairs % n_concepts])
    names, (below, above) = torch.unique(ends, return_inverse=True)
    is_above = torch.zeros(len(names), len(names))
    is_above[below, above] = 1
    # Squaring doubles the length of the paths found.
    while not torch.equal(further := ((is_above + is_above @ is_above) > 0).float(), is_above):
        is_above = further
    below, above = is_above.fill_diagonal_(0).nonzero(as_tuple=True)
    return _pairs(names[below], names[above], n_concepts)


def _score(claimed: torch.Tensor, truth: torch.Tensor, recall_defined: bool) -> PairScore:
    n_true, n_claimed, n_correct = len(truth), len(claimed), int(torch.isin(claimed, truth).sum())
    return PairScore(
        n_true=n_true,
        n_claimed=n_claimed,
        n_correct=n_correct,
        precision=_share(n_correct, n_claimed),
        recall=n_correct / n_true if recall_defined else math.nan,
        f1=2 * n_correct / (n_claimed + n_true) if recall_defined else math.nan,
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
