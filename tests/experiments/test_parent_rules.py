"""Similarities of features that fire together, against loops and the package's own."""

import math

import numpy as np
import torch

from experiments.planted.parent_rules import _forest, similarities
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.parents import conditional_similarity


def test_similarities_against_loops_and_the_packages_own():
    generator = torch.Generator().manual_seed(0)
    parents = torch.rand(60, 5, generator=generator, dtype=torch.float64) - 0.4
    children = torch.rand(60, 7, generator=generator, dtype=torch.float64) - 0.6
    parents, children, cosine = parents.clamp(min=0), children.clamp(min=0), torch.rand(5, 7, generator=generator)
    found = similarities(parents, children, cosine)
    own = conditional_similarity(
        ((parents > 0).double().T @ (children > 0).double()) / 60,
        (parents > 0).double().mean(0),
        (children > 0).double().mean(0),
        60,
    )(slice(0, 5), torch.arange(7))
    assert torch.allclose(found["the default: P(parent | child)'s lower end − 2 P(parent)"].float(), own.float())
    for p in range(5):
        for c in range(7):
            a, b = parents[:, p].numpy(), children[:, c].numpy()
            both, likely = ((a > 0) & (b > 0)).mean(), (a > 0).mean()
            if not both or likely < (b > 0).mean():
                assert all(each[p, c] == -math.inf for each in found.values())
                continue
            expected = {
                "P(parent | child) − 2 P(parent)": both / (b > 0).mean() - 2 * likely,
                "the same, tokens weighted by the child's activation": b[a > 0].sum() / b.sum() - 2 * likely,
                "φ": np.corrcoef(a > 0, b > 0)[0, 1],
                "correlation of activations": np.corrcoef(a, b)[0, 1],
                "P(parent | child) · log lift": both / (b > 0).mean() * math.log(both / (b > 0).mean() / likely),
                "decoder cosine": cosine[p, c].item(),
            }
            for name, value in expected.items():
                assert math.isclose(found[name][p, c], value, abs_tol=1e-5), name


def test_the_bar_is_one_for_all_boundaries_and_leaves_a_share_of_the_children_a_parent():
    like = FeatureForest([-1] * 12, [2, 4, 6])
    chosen = [
        (torch.tensor([0.9, 0.8, 0.1, -torch.inf]), torch.tensor([0, 1, 1, 0])),
        (torch.tensor([0.7, 0.6, 0.5, 0.4, 0.3, 0.2]), torch.tensor([3, 2, 1, 0, 3, 3])),
    ]
    assert _forest(chosen, 0.5, like).parents.tolist() == [-1, -1, 0, 1, -1, -1, 5, 4, 3, -1, -1, -1]
