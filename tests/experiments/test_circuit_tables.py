"""The measures of the circuits' table, on effects by hand."""

import pytest
import torch

from experiments.behaviours import BEHAVIOURS
from experiments.circuits import parents_and_children, reached_at
from sae_lens_hsae import FeatureForest
from sae_lens_hsae.forest.feature_forest import candidates_below


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_every_pair_has_a_contrast_and_no_side_is_favoured(name):
    pairs = BEHAVIOURS[name]()
    assert len(pairs) == len(set(pairs)) >= 8
    for pair in pairs:
        assert pair.patch not in (None, pair.clean)
        assert pair.answer != pair.foil
    if name != "later year":  # from an early year both decades are right
        answers = [pair.answer for pair in pairs]
        assert max(map(answers.count, answers)) <= len(pairs) / 2


def test_parents_against_the_sum_of_their_children():
    # Parents 0, 1, 2; children 3 and 4 of 0, 5 of 1, 6 of 2; 7 has no parent.
    forest = FeatureForest([-1, -1, -1, 0, 0, 1, 2, -1], [3, 5])
    effect = torch.tensor([1.0, -2.0, 0.0, 0.4, 0.8, -1.0, 0.6, 9.0])
    found = parents_and_children({"h": forest}, {"h": effect}, 0, 0.5)
    x, y = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([1.2, -1.0, 0.6])
    assert found["correlation"] == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item())
    assert found["slope"] == pytest.approx((1.0 * 1.2 + 2.0) / 5.0)
    assert found["n"] == 3, "4, 5 and 6"
    assert found["found"] == pytest.approx(2 / 3), "2 is under the threshold"
    assert found["base"] == pytest.approx(3 / 4)


def test_a_feature_is_reached_at_the_highest_threshold_that_lets_all_above_it_through():
    forest = FeatureForest([-1, -1, 0, 0, 1, -1, 2, 3, 5, -1, 4], [2, 4, 5])
    effects = torch.randn(len(forest), generator=torch.Generator().manual_seed(0))
    reached = reached_at(forest, effects)
    for threshold in (0.01, 0.1, 0.3, 0.6, 1.0, 1.5):
        over = torch.zeros(len(forest), dtype=torch.bool)
        for level, own in enumerate(forest.levels):
            found = candidates_below(forest, level, over) + own.start
            over[found[effects[found].abs() >= threshold]] = True
        assert torch.equal(reached >= threshold, over)
