"""Absorption, against plain loops."""

import math

import pytest
import torch
from planted_helpers import TRUTH, active, matches_of, random_case, readouts

from experiments.planted.absorption import measure_absorption
from sae_lens_hsae.forest.levels import Levels


def test_absorption_counts_silent_parents():
    # Coordinate 8 is what the feature of concept 0 fires on; it is silent on the last two samples.
    saes = readouts([8, 3], [8, 2, 3], d_in=9)
    matches = matches_of([0, 3], [0, 2, 3])
    concepts = active([0, 2], [0, 3], [0], [1], [0, 2], [0, 2, 3])
    x = torch.cat([concepts, torch.tensor([[1, 1, 1, 1, 0, 0]]).T.double()], dim=1)
    result = measure_absorption(saes, matches, TRUTH, [(x[:4], concepts[:4]), (x[4:], concepts[4:])])
    # Level 0: pair (3, 0) on samples 1 and 5. Level 1 and across: (2, 0) on 0, 4, 5 and (3, 0) on 1, 5.
    assert result.by_level == (1 / 2, 3 / 5)
    assert result.by_boundary == (3 / 5,)
    assert (result.within_level, result.across_levels) == (4 / 7, 3 / 5)
    assert (result.n_within, result.n_across) == (7, 5)


def test_absorption_asks_for_the_true_parent_and_is_nan_without_an_occasion():
    concepts = active([2], [3])  # the features of 2 and 3 fire though 0 is not there
    result = measure_absorption(readouts([0], [2, 3]), matches_of([0], [2, 3]), TRUTH, [(concepts, concepts)])
    assert math.isnan(result.across_levels)
    assert math.isnan(result.within_level)
    assert (result.n_within, result.n_across) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_absorption_equals_plain_loops(seed):
    _, matches, truth = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (50, 24), generator=generator).double()
    concepts = torch.randint(2, (50, 9), generator=generator)
    coordinates = [list(range(own.start, own.stop)) for own in Levels((3, 5, 7, 9))]
    result = measure_absorption(readouts(*coordinates, d_in=24), matches, truth, [(x, concepts)])
    for above, below, share in [
        *((level, level, result.by_level[level]) for level in range(4)),
        *((level, level + 1, result.by_boundary[level]) for level in range(3)),
    ]:
        absorbed = occasions = 0
        for child, parent in enumerate(truth.tolist()):
            parent_feature, child_feature = matches.features_of(above)[parent], matches.features_of(below)[child]
            if parent < 0 or parent_feature < 0 or child_feature < 0:
                continue
            for sample in range(50):
                if concepts[sample, parent] and x[sample, coordinates[below][child_feature]]:
                    occasions += 1
                    absorbed += int(x[sample, coordinates[above][parent_feature]] == 0)
        assert (share == absorbed / occasions) if occasions else math.isnan(share)
