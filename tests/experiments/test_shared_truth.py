"""Edges of two trainings judged by the planted truth."""

import pytest
import torch

from experiments.planted.shared_truth import VERDICTS, edges_judged, judged
from experiments.planted.trees import EASY
from sae_lens_hsae.forest import FeatureForest


def test_every_edge_is_judged_by_what_the_parents_concept_is_to_the_childs():
    true_parents = torch.tensor([-1, 0, 1, -1])
    forest = FeatureForest([-1, -1, 0, 0, 0, 1, 1, 0], [2, 6])
    # Under 0: its child, its grandchild, 0 itself, and what stands for nothing; under 3, 1 and 2 are strangers.
    concepts = torch.tensor([0, 3, 1, 2, 0, 1, 2, -1])
    shared = torch.tensor([False, False, True, True, False, False, True, False])
    both, one = judged(forest, shared, concepts, true_parents)
    assert both == pytest.approx(dict(zip(["number", *VERDICTS], [3, 1 / 3, 1 / 3, 0, 1 / 3, 0], strict=True)))
    assert one == pytest.approx(dict(zip(["number", *VERDICTS], [3, 0, 0, 1 / 3, 1 / 3, 1 / 3], strict=True)))


def test_two_short_trainings_share_some_edges():
    both, one = edges_judged(EASY, seed=0, steps=60, n_samples=2_000)["rows"]
    assert one["number"] > 0
    assert all(sum(row[name] for name in VERDICTS) in (pytest.approx(1), 0) for row in (both, one))
