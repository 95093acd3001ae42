"""Forests in which every edge is true."""

import pytest
from planted_helpers import random_case

from experiments.planted.tree_recovery import score_recovery
from experiments.planted.true_forest import true_forest


@pytest.mark.parametrize("seed", range(10))
def test_no_edge_between_true_parents_is_wrong(seed):
    _, matches, truth = random_case(seed)
    recovery = score_recovery(true_forest(matches, truth), matches, truth)
    assert recovery.direct.n_correct == recovery.direct.n_claimed
    assert recovery.n_edges == recovery.n_matched_edges
