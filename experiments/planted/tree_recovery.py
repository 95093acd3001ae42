"""Is a forest true? The pairs of concepts that it claims, against the true hierarchy.

The hierarchy metrics (`evaluate_forest`) measure whether a forest agrees with itself, these whether it is right.
Features are first matched to the concepts of the generator (`match_features`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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

    def __str__(self) -> str:
        return (
            f"precision {_number(self.precision)}  recall {_number(self.recall)}  F1 {_number(self.f1)}  "
            f"({self.n_correct} correct of {self.n_claimed} claimed, {self.n_true} true)"
        )


@dataclass(frozen=True)
class TreeRecovery:
    """What of a known hierarchy a forest recovered; print it for a summary.

    Attributes:
        direct: pairs (child, parent).
        ancestors: pairs (concept, ancestor): the transitive closures of the claimed and of the true direct pairs.
        n_within_reach: true direct pairs whose parent was found at a coarser level than the child: more of them no
            forest over these levels and matches could claim.
        n_concepts: concepts of the generator, also those outside all trees.
        n_tree_concepts: those with a parent or a child.
        concepts_found: share of all concepts that a feature of any level stands for.
        tree_concepts_found: the same of the concepts in trees.
        n_features: features of all levels.
        n_matched: those that stand for a concept.
        n_edges: edges of the forest.
        n_matched_edges: those between two matched features.
        n_identity_edges: those that join a concept to its own copy one level up.
        identity_share: ``n_identity_edges`` over ``n_edges``; NaN without edges.
        absorption: from `measure_absorption`; None if it was not measured.
        undefined: why a score is NaN.
    """

    direct: PairScore
    ancestors: PairScore
    n_within_reach: int
    n_concepts: int
    n_tree_concepts: int
    concepts_found: float
    tree_concepts_found: float
    n_features: int
    n_matched: int
    n_edges: int
    n_matched_edges: int
    n_identity_edges: int
    identity_share: float
    absorption: Absorption | None = None
    undefined: Mapping[str, str] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; NaN becomes None."""
        return _plain(asdict(self))

    def __str__(self) -> str:
        lines = [
            f"direct parents  {self.direct}",
            f"ancestors       {self.ancestors}",
            f"concepts found  {_number(self.concepts_found)} of {self.n_concepts}, "
            f"{_number(self.tree_concepts_found)} of the {self.n_tree_concepts} in trees; "
            f"{self.n_within_reach} direct pairs within reach",
            f"features        {self.n_matched} of {self.n_features} stand for a concept",
            f"edges           {self.n_edges}, of them {self.n_matched_edges} between matched features and "
            f"{self.n_identity_edges} identities ({_number(self.identity_share)})",
        ]
        if self.absorption is not None:
            lines.append(
                f"absorption      {_number(self.absorption.within_level)} within a level, "
                f"{_number(self.absorption.across_levels)} across levels"
            )
        return "\n".join(lines + [f"{name} is undefined: {why}" for name, why in self.undefined.items()])


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
    in_tree, found = is_child.clone(), torch.zeros(n, dtype=torch.bool)
    in_tree[true_parents[is_child]] = True
    found[concepts[matched]] = True

    undefined = {}
    if not len(claimed):
        undefined["precision"] = "no matched feature is under one of another concept"
    if not len(truth):
        undefined["recall"] = undefined["f1"] = "no concept has a parent"
    elif not matched.any():
        why = "no feature stands for a concept: train longer, take more samples or lower the floor"
        undefined["recall"] = undefined["f1"] = why
    if not edges.any():
        undefined["identity_share"] = "the forest has no edge"
    return TreeRecovery(
        direct=_score(claimed, truth, "recall" in undefined),
        ancestors=_score(_closure(claimed, n), _closure(truth, n), "recall" in undefined),
        n_within_reach=_n_within_reach(matches, true_parents),
        n_concepts=n,
        n_tree_concepts=int(in_tree.sum()),
        concepts_found=_share(int(found.sum()), n),
        tree_concepts_found=_share(int(found[in_tree].sum()), int(in_tree.sum())),
        n_features=forest.n_features,
        n_matched=int(matched.sum()),
        n_edges=int(edges.sum()),
        n_matched_edges=int(joined.sum()),
        n_identity_edges=n_identities,
        identity_share=_share(n_identities, int(edges.sum())),
        absorption=absorption,
        undefined=undefined,
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


def _score(claimed: torch.Tensor, truth: torch.Tensor, recall_undefined: bool) -> PairScore:
    n_true, n_claimed, n_correct = len(truth), len(claimed), int(torch.isin(claimed, truth).sum())
    return PairScore(
        n_true=n_true,
        n_claimed=n_claimed,
        n_correct=n_correct,
        precision=_share(n_correct, n_claimed),
        recall=math.nan if recall_undefined else n_correct / n_true,
        f1=math.nan if recall_undefined else 2 * n_correct / (n_claimed + n_true),
    )


def _n_within_reach(matches: ConceptMatches, true_parents: torch.Tensor) -> int:
    found = torch.stack([matches.features_of(level) >= 0 for level in range(len(matches.level_widths))])
    level = torch.arange(len(found)).unsqueeze(1)
    coarsest = torch.where(found, level, len(found)).amin(0)
    finest = torch.where(found, level, -1).amax(0)
    child = (true_parents != NO_PARENT).nonzero().flatten()
    return int((coarsest[true_parents[child]] < finest[child]).sum())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
