"""Absorption, against plain loops."""

import math

import pytest
import torch
from planted_helpers import random_case, readouts

from experiments.planted.absorption import measure_absorption
from sae_lens_hsae.forest.levels import Levels


@pytest.mark.parametrize("seed", range(5))
def test_absorption_equals_plain_loops(seed):
    _, matches, truth = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(2, (50, 24), generator=generator).double()
    concepts = torch.randint(2, (50, 9), generator=generator)
    coordinates = [list(range(own.start, own.stop)) for own in Levels((3, 5, 7, 9))]
    samples = [(x[:20], concepts[:20]), (x[20:], concepts[20:])]
    result = measure_absorption(readouts(*coordinates, d_in=24), matches, truth, samples)
    totals = {True: [0, 0], False: [0, 0]}
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
        totals[above == below][0] += absorbed
        totals[above == below][1] += occasions
    assert (result.within_level, result.n_within) == (totals[True][0] / totals[True][1], totals[True][1])
    assert (result.across_levels, result.n_across) == (totals[False][0] / totals[False][1], totals[False][1])
