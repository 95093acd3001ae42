"""Recovery of known hierarchies, against values worked out by hand and against plain loops."""

import pytest
import torch
from planted_helpers import random_case

from experiments.planted.concept_matching import ConceptMatches
from experiments.planted.tree_recovery import score_recovery
from experiments.planted.true_forest import true_forest
from sae_lens_hsae.forest import FeatureForest


def slow_scores(forest: FeatureForest, matches: ConceptMatches, truth: torch.Tensor) -> dict[str, int]:
    concept, parent = matches.concept_of.tolist(), truth.tolist()

    def closure(pairs):
        pairs = set(pairs)
        while more := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
            pairs |= more
        return {(a, b) for a, b in pairs if a != b}

    true = {(c, p) for c, p in enumerate(parent) if p >= 0}
    claimed, edges, joined, identities = set(), 0, 0, 0
    for feature in range(forest.n_features):
        if (above := forest.parent(feature)) is not None:
            edges += 1
            joined += concept[feature] >= 0 and concept[above] >= 0
            identities += concept[feature] >= 0 and concept[feature] == concept[above]
        if concept[feature] < 0:
            continue
        for ancestor in forest.path(feature)[-2::-1] if len(forest.path(feature)) > 1 else []:
            if concept[ancestor] >= 0 and concept[ancestor] != concept[feature]:
                claimed.add((concept[feature], concept[ancestor]))
                break
    return {
        "true": len(true), "claimed": len(claimed), "correct": len(true & claimed),
        "all_true": len(closure(true)), "all_claimed": len(closure(claimed)),
        "all_correct": len(closure(true) & closure(claimed)),
        "edges": edges, "joined": joined, "identities": identities,
        "found": len(set(concept) - {-1}),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_plain_loops(seed):
    forest, matches, truth = random_case(seed)
    result, slow = score_recovery(forest, matches, truth), slow_scores(forest, matches, truth)
    fast = {
        "true": result.direct.n_true, "claimed": result.direct.n_claimed, "correct": result.direct.n_correct,
        "all_true": result.ancestors.n_true, "all_claimed": result.ancestors.n_claimed,
        "all_correct": result.ancestors.n_correct, "edges": result.n_edges, "joined": result.n_matched_edges,
        "identities": result.n_identity_edges,
        "found": round(result.concepts_found * result.n_concepts),
    }  # fmt: skip
    assert fast == slow


@pytest.mark.parametrize("seed", range(3))
def test_no_edge_between_true_parents_is_wrong(seed):
    _, matches, truth = random_case(seed)
    recovery = score_recovery(true_forest(matches, truth), matches, truth)
    assert recovery.direct.n_correct == recovery.direct.n_claimed
    assert recovery.n_edges == recovery.n_matched_edges
