"""Which parents are replaced, and by what (HSAE §3.2)."""

import pytest
import reference
import torch
from reference import random_case

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.perturbation import draw_replaced, replacement_delta, replacements

WIDTHS = (4, 9, 20)


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_perturbed_reconstruction_equals_the_formula(seed, rate):
    levels = Levels(WIDTHS)
    acts, W_dec, parents = random_case(WIDTHS, 6, 3, seed)
    b_dec = torch.randn(3, 6, dtype=torch.float64)
    replaced = draw_replaced(parents, rate, seed, step=7)
    slices = [(own.start, own.stop) for own in levels]
    names = set(torch.nonzero(replaced).squeeze(1).tolist())
    for level, (own, change) in enumerate(zip(levels, replacements(replaced, parents, levels), strict=False)):
        ours = acts[:, own] @ W_dec[own] + b_dec[level]
        ours = ours + replacement_delta(acts, W_dec, change)
        theirs = reference.reconstruction(acts, W_dec, b_dec, parents.tolist(), slices, level, names)
        torch.testing.assert_close(ours, theirs)
        grads = [torch.autograd.grad(out.square().sum(), [acts, W_dec]) for out in (ours, theirs)]
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)


def test_only_features_with_children_are_replaced_and_rate_one_replaces_all_of_them():
    _, _, parents = random_case(WIDTHS, 1, 1, seed=3)
    with_children = torch.zeros(sum(WIDTHS), dtype=torch.bool)
    with_children[parents[parents >= 0]] = True
    assert torch.equal(draw_replaced(parents, 1.0, 0, 1), with_children)
    assert not draw_replaced(parents, 0.0, 0, 1).any()
    assert not with_children[-WIDTHS[-1] :].any(), "the finest level has no children to be replaced by"


def test_the_finest_level_and_levels_without_replacement_are_left_alone():
    acts, W_dec, parents = random_case(WIDTHS, 6, 3, seed=3)
    nothing = replacements(torch.zeros(sum(WIDTHS), dtype=torch.bool), parents, Levels(WIDTHS))
    assert len(nothing) == len(WIDTHS) - 1
    for change in nothing:
        assert len(change.features) == 0
        assert not replacement_delta(acts, W_dec, change).any()


def test_the_rate_is_that_of_replacing_not_of_keeping():
    parents = torch.cat([torch.full((20_000,), -1), torch.arange(20_000)])
    share = draw_replaced(parents, 0.05, seed=0, step=1)[:20_000].float().mean().item()
    assert share == pytest.approx(0.05, abs=0.01)


def test_draws_differ_between_steps_and_seeds_and_repeat_for_the_same():
    parents = torch.cat([torch.full((500,), -1), torch.arange(500)])
    draw = draw_replaced(parents, 0.5, seed=0, step=1)
    assert torch.equal(draw, draw_replaced(parents, 0.5, seed=0, step=1))
    for seed, step in [(0, 2), (1, 1), (1, 0), (-3, 1)]:
        agreement = (draw == draw_replaced(parents, 0.5, seed, step))[:500].float().mean().item()
        assert 0.35 < agreement < 0.65


def test_the_draw_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    draw_replaced(torch.tensor([-1, 0]), 0.5, 0, 1)
    assert torch.equal(before, torch.get_rng_state())
