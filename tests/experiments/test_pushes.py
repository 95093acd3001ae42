"""Coarse against fine pushes: which features are pushed, and what a row says of them."""

import torch

from experiments.pushes import targets
from sae_lens_hsae.forest import FeatureForest


def test_targets_have_three_ancestors_and_no_copy_above_them_and_the_other_is_of_another_tree():
    # Two roots; under each a chain down to two finest features, and one finest feature without a parent.
    forest = FeatureForest(torch.tensor([-1, -1, 0, 1, -1, 2, 3, -1, -1, 5, 5, 6, 6, -1]), [2, 3, 4, 5])
    fires = torch.full((14,), 5)
    fires[12] = 2
    is_copy = torch.zeros(14, dtype=torch.bool)
    pairs = targets(forest, is_copy, fires)
    assert sorted(target for target, _ in pairs) == [9, 10, 11], "the last but one fires too seldom"
    assert all(forest.path(target)[0] not in forest.path(other) for target, other in pairs)
    assert {other for _, other in pairs} <= {9, 10, 11, 13}
    is_copy[6] = True
    assert sorted(target for target, _ in targets(forest, is_copy, fires)) == [9, 10]
    assert targets(forest, is_copy, fires) == targets(forest, is_copy, fires)
