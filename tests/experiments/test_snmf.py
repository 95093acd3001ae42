"""Semi-nonnegative factorisation against loops written from its formulas, and its levels on a known tree."""

import pytest
import torch
from scipy.optimize import nnls

from experiments.snmf import RIDGE, FactorLevel, coefficients, factor_levels, features_for, updated
from sae_lens_hsae import evaluate_forest


@pytest.fixture
def tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    y = torch.rand(30, 5, generator=generator, dtype=torch.float64)
    return a, y, torch.randn(5, 7, generator=generator, dtype=torch.float64)


def test_features_are_the_least_squares_ones(tables):
    a, y, _ = tables
    ridge = RIDGE * sum(float(y[:, i] @ y[:, i]) for i in range(5)) / 5
    with_ridge = torch.cat([y, ridge**0.5 * torch.eye(5, dtype=a.dtype)])
    padded = torch.cat([a, torch.zeros(5, 7, dtype=a.dtype)])
    expected = torch.linalg.lstsq(with_ridge, padded).solution
    torch.testing.assert_close(features_for(a, y), expected)


def test_an_update_is_that_of_the_formula_and_brings_y_closer(tables):
    a, y, z = tables
    found = updated(a, y, z)
    for i in range(30):
        for j in range(5):
            towards = float(a[i] @ z[j])
            rise, fall = max(towards, 0), max(-towards, 0)
            for m in range(5):
                overlap = float(z[m] @ z[j])
                rise += float(y[i, m]) * max(-overlap, 0)
                fall += float(y[i, m]) * max(overlap, 0)
            assert float(found[i, j]) == pytest.approx(float(y[i, j]) * (rise / fall) ** 0.5, rel=1e-9)
    assert (a - found @ z).norm() < (a - y @ z).norm()
    assert (found >= 0).all()


def test_coefficients_are_the_nonnegative_least_squares_ones(tables):
    a, _, z = tables
    expected = torch.stack([torch.from_numpy(nnls(z.T.numpy(), row.numpy())[0]) for row in a])
    assert (expected == 0).any()
    torch.testing.assert_close(coefficients(a, z, steps=2000), expected, atol=1e-6, rtol=0)


def drawn(n: int) -> torch.Tensor:
    """Each of two groups has a direction, and three features that turn it a little; one feature is there at a time."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.eye(8)[[0, 0, 0, 1, 1, 1]] + 0.6 * torch.eye(8)[2:]
    which = torch.randint(6, (n,), generator=generator)
    return directions[which] * (1 + torch.rand(n, 1, generator=generator))


def test_levels_fire_as_often_as_asked_and_are_measured_like_any():
    x = drawn(600)
    levels, forest = factor_levels(x, (2, 6), (0.5, 0.75), seed=0)
    measured = evaluate_forest(levels, forest, [x])
    assert [level.l0 for level in measured.levels] == pytest.approx([0.5, 0.75], abs=0.01)
    assert isinstance(levels[0], FactorLevel)
    codes = levels[1].encode(x)
    torch.testing.assert_close(levels[1].decode(codes), codes @ levels[1].W_dec + x.mean(0))
    again, same = factor_levels(x, (2, 6), (0.5, 0.75), seed=0)
    assert torch.equal(again[1].W_dec, levels[1].W_dec)
    assert same == forest
