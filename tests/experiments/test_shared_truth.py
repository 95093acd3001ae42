"""Edges of two trainings judged by the planted truth."""

import pytest
import torch

from experiments.planted.shared_truth import KINDS, VERDICTS, edges_judged, judged, masks
from experiments.planted.trees import EASY


def test_every_edge_is_judged_by_what_the_parents_concept_is_to_the_childs():
    true_parents = torch.tensor([-1, 0, 1, -1])
    edges = torch.tensor([[0, 2], [0, 3], [0, 4], [1, 5], [1, 6], [0, 7]])
    # Under 0: its child, its grandchild, 0 itself, and what stands for nothing; under 3, 1 and 2 are strangers.
    concepts = torch.tensor([0, 3, 1, 2, 0, 1, 2, -1])
    found = judged(edges, concepts, true_parents)
    assert found == pytest.approx(dict(zip(["number", *VERDICTS], [6, 1 / 6, 1 / 6, 1 / 6, 1 / 3, 1 / 6], strict=True)))


def test_kinds_of_edges_by_hand():
    edges = torch.tensor([[0, 2], [0, 3], [1, 4], [1, 5], [1, 6]])
    again, matched = torch.zeros(7, dtype=torch.bool), torch.ones(7, dtype=torch.bool)
    again[[2, 4]], matched[5] = True, False
    similarity = torch.tensor([0.1, 0.5, 0.3, 0.2, 0.4])
    assert [mask.nonzero().flatten().tolist() for mask in masks(edges, again, matched, similarity)] == [
        [0, 2],
        [1, 4],
        [3],
        [1, 4],
    ]


def test_two_trainings_share_edges_whose_ends_they_share():
    rows = edges_judged(EASY, seed=0, steps=150, n_samples=2_000)["rows"]
    assert list(rows) == list(KINDS)
    assert rows["found again"]["number"] == rows["as many, the most similar"]["number"] > 0
    for row in rows.values():
        assert sum(row[name] for name in VERDICTS) == pytest.approx(1 if row["number"] else 0)
