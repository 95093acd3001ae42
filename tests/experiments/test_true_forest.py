"""Forests in which every edge is true."""

import pytest
from planted_helpers import TRUTH, matches_of, random_case

from experiments.planted.tree_recovery import score_recovery
from experiments.planted.true_forest import true_forest


def test_true_parents_are_those_of_the_definition():
    # Roots 0 and 1, and an unmatched feature; copies of 1 and 0, and 2, 4;
    # then 4 again, 5 (whose parent is a copy), 6, 7, none, 3.
    matches = matches_of([0, 1, None], [1, 2, 4, None, 0], [4, 5, 6, 7, None, 3])
    parents = true_forest(matches, TRUTH).parents
    assert parents.tolist() == [-1, -1, -1, 1, 0, 1, -1, 0, 3, 3, 4, -1, -1, 7]


@pytest.mark.parametrize("seed", range(10))
def test_no_edge_between_true_parents_is_wrong(seed):
    _, matches, truth = random_case(seed)
    recovery = score_recovery(true_forest(matches, truth), matches, truth)
    assert recovery.direct.n_correct == recovery.direct.n_claimed
    assert recovery.n_edges == recovery.n_matched_edges
