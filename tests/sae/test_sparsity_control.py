"""λ per level: the rule, and that it reaches its target where L0 answers late (HSAE App. A.2)."""

import math

import pytest
import torch

from sae_lens_hsae.sae.sparsity_control import LOG_COEFFICIENT_BOUND, SparsityState, control_sparsity

RULE = {"rate": 0.01, "gain": 1.0, "momentum": 0.95}


def step(log_lambda, ema, l0, target, **changes):
    state = SparsityState(torch.tensor([log_lambda]), torch.tensor([ema]))
    after = control_sparsity(state, torch.tensor([l0]), torch.tensor([target]), **{**RULE, **changes})
    assert after.log_coefficient is not None
    return after.log_coefficient.item(), after.l0_ema.item()


def test_the_rule_by_hand():
    log_lambda, ema = step(0.5, 20.0, 10.0, 16.0, rate=0.1, gain=2.0, momentum=0.9)
    assert ema == pytest.approx(19.0)
    assert log_lambda == pytest.approx(0.5 + 2 * (math.log(19 / 20) + 0.1 * math.log(19 / 16)))


def test_the_running_mean_starts_at_the_first_batch():
    log_lambda, ema = step(0.0, 0.0, 100.0, 10.0)
    assert ema == 100
    assert log_lambda == pytest.approx(0.01 * math.log(10)), "no velocity before there are two values"


def test_levels_are_steered_on_their_own():
    state = SparsityState(torch.zeros(2), torch.tensor([16.0, 16.0]))
    after = control_sparsity(state, torch.tensor([16.0, 32.0]), torch.tensor([16.0, 16.0]), **RULE)
    assert after.log_coefficient is not None
    assert after.log_coefficient[0] == 0
    assert after.log_coefficient[1] > 0


def test_a_silent_level_stays_finite_and_lambda_within_its_bounds():
    log_lambda, ema = 0.0, 16.0
    for _ in range(5000):
        log_lambda, ema = step(log_lambda, ema, 0.0, 16.0)
    assert math.isfinite(log_lambda)
    assert log_lambda == pytest.approx(-LOG_COEFFICIENT_BOUND)
    assert ema > 0


@pytest.mark.parametrize("target", [8.0, 16.0, 32.0])
@pytest.mark.parametrize("start", [160.0, 20.0, 2.0])
@pytest.mark.parametrize("lag", [20, 100])
def test_it_reaches_the_target_of_a_plant_that_answers_late(target, start, lag):
    # log L0 drifts towards a falling function of log λ, with a time constant: thresholds need many steps to follow.
    log_lambda, ema, log_l0 = 0.0, 0.0, math.log(start)
    at_rest = math.log(start)
    late = []
    for t in range(1500):
        log_lambda, ema = step(log_lambda, ema, math.exp(log_l0), target)
        log_l0 += (at_rest - 0.7 * log_lambda - log_l0) / lag
        if t >= 1000:
            late.append(ema)
    assert all(abs(value / target - 1) < 0.1 for value in late)
    assert math.exp(log_l0) == pytest.approx(target, rel=0.05)
