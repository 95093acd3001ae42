"""Features matched to concepts, against the best of all assignments."""

import itertools

import numpy as np
import pytest
import torch
from planted_helpers import readouts

from experiments.planted.concept_matching import FLOOR, match_features
from sae_lens_hsae.forest.levels import Levels


@pytest.mark.parametrize("seed", range(6))
def test_matching_equals_the_best_of_all_assignments(seed):
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.rand(60, 5, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.6, 0.0])
    source = torch.tensor([0, 1, 2, 3, 1, 2])
    noise = torch.rand(60, 6, generator=generator) < torch.tensor([0.1, 0.2, 0.3, 0.05, 0.1, 0.4])
    x = (concepts[:, source] ^ noise).double()
    x[:, 5] = seed % 2  # never or always fires
    samples = [(x[i : i + 17], concepts[i : i + 17].float()) for i in range(0, 60, 17)]
    matches = match_features(readouts([0, 1], [2, 3, 4, 5], d_in=6), samples)

    for own, level in zip(Levels((2, 4)), ([0, 1], [2, 3, 4, 5]), strict=True):
        phi = np.zeros((len(level), 5))
        for (i, feature), concept in itertools.product(enumerate(level), range(5)):
            fires, there = x[:, feature].numpy(), concepts[:, concept].double().numpy()
            if fires.std() > 0 and there.std() > 0:
                phi[i, concept] = np.corrcoef(fires, there)[0, 1]
        worth = np.where(phi >= FLOOR, phi, 0)
        # Five further columns of nothing let any feature go without.
        padded = np.hstack([worth, np.zeros((len(level), 5))])
        best = max(
            sum(padded[i, column] for i, column in enumerate(columns))
            for columns in itertools.permutations(range(10), len(level))
        )
        found = matches.concept_of[own].tolist()
        taken = [concept for concept in found if concept >= 0]
        assert len(taken) == len(set(taken))
        similarity = [phi[i, concept] for i, concept in enumerate(found) if concept >= 0]
        assert min(similarity, default=1) >= FLOOR
        assert sum(similarity) == pytest.approx(best)
        np.testing.assert_allclose(matches.similarity[own][matches.concept_of[own] >= 0], similarity)
