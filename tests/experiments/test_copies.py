"""Copies by their cosine, against the concepts that features stand for."""

import math

import pytest
import torch

from experiments.planted.copies import COSINES, scored
from sae_lens_hsae.forest import FeatureForest


def test_marked_edges_against_known_concepts():
    # Two roots over four children: directions at angles whose cosines are 0.95, 0.82, 0.5 and 0.95 with their parents.
    def at(cosine: float) -> list[float]:
        return [cosine, math.sqrt(1 - cosine**2)]

    decoder = torch.tensor([[1.0, 0.0], [1.0, 0.0], at(0.95), at(0.82), at(0.5), at(0.95)])
    forest = FeatureForest([-1, -1, 0, 0, 1, 1], [2, 4])
    concepts = torch.tensor([7, 8, 7, 7, 9, -1])  # the last stands for nothing and does not count
    rows = dict(zip(COSINES, scored(forest, decoder, concepts), strict=True))
    assert rows[0.8] == pytest.approx(
        {"identities": 2 / 3, "marked": 2 / 3, "precision": 1, "recall": 1, "identities left": 0}
    )
    assert rows[0.9] == pytest.approx(
        {"identities": 2 / 3, "marked": 1 / 3, "precision": 1, "recall": 1 / 2, "identities left": 1 / 2}
    )
