"""Ghost gradients against plain loops, and with places for dead features against those of the dead alone."""

import pytest
import reference
import torch
from feature_rows import Watched
from small_saes import D_IN, at_step, make_sae, step_input

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.ghost_gradients import ghost_gradient_loss
from sae_lens_hsae.sae.gpu_step.ghosts import ghost_gradients, places_for
from sae_lens_hsae.sae.level_activation import Encoder


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    pre = torch.randn(5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    W_dec = torch.randn(7, 4, generator=generator, dtype=torch.float64).requires_grad_()
    dead = torch.tensor([False, True, False, True, True, False, False])
    return error, pre, W_dec, dead


def test_value_and_gradients_equal_the_formula():
    error, pre, W_dec, dead = case()
    ours = ghost_gradient_loss(error, pre[:, dead], W_dec[dead])
    theirs = reference.ghost_gradient_loss(error, pre, W_dec, dead.tolist())
    torch.testing.assert_close(ours, theirs)
    of_error, *got = torch.autograd.grad(ours, [error, pre, W_dec], allow_unused=True)
    torch.testing.assert_close(tuple(got), torch.autograd.grad(theirs, [pre, W_dec]))
    assert of_error is None, "the reconstruction receives none"


def test_tokens_count_as_much_as_they_weigh():
    error, pre, W_dec, dead = case()
    weights = torch.tensor([1.0, 0.25, 1.0, 0.0, 0.5], dtype=torch.float64)
    of_tokens = [ghost_gradient_loss(error[[i]], pre[[i]][:, dead], W_dec[dead]) for i in range(5)]
    weighted = ghost_gradient_loss(error, pre[:, dead], W_dec[dead], weights)
    torch.testing.assert_close(weighted, (torch.stack(of_tokens) * weights).mean())


def test_a_sink_does_not_own_the_gradient():
    sae = make_sae(outlier_limit=3.0, dead_feature_loss="ghost")
    dead = torch.ones(sae.cfg.d_sae, dtype=torch.bool)
    norms = []
    for factor in (1, 10):
        x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(0))
        sae.standardization.observe(x, 0)
        sae.standardization.begin(sae.b_dec.data)
        x[0] *= factor
        sae.zero_grad()
        losses = at_step(sae, 16).training_forward_pass(step_input(x, dead)).losses
        losses["ghost_gradient_loss"].backward()
        assert sae.W_enc.grad is not None
        norms.append(sae.W_enc.grad.norm().item())
    assert norms[1] < 2 * norms[0]


def test_large_pre_activations_do_not_overflow():
    error, pre, W_dec, dead = case()
    assert torch.isfinite(ghost_gradient_loss(error.float(), pre.float()[:, dead] + 500, W_dec.float()[dead]))


# With places for dead features, as on a GPU.


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("places", [(4, 9, 20), (2, 4, 8), (0, 9, 7)])
def test_they_equal_those_of_the_dead_features_alone(apply_b_dec_to_input, places):
    sae = make_sae(dtype="float64", apply_b_dec_to_input=apply_b_dec_to_input)
    generator = torch.Generator().manual_seed(3)
    errors, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 6, D_IN), (6, D_IN)))
    dead = torch.zeros(33, dtype=torch.bool)
    dead[torch.tensor([5, 6, 20, 30, 31])] = True  # none in the first level
    encoder = Encoder(sae.W_enc, sae.b_enc, sae.b_dec if apply_b_dec_to_input else None)
    weights = torch.rand(6, generator=generator, dtype=torch.float64)
    with Watched():
        ours = ghost_gradients(errors, x, dead, places, encoder, sae.W_dec, sae.levels, weights)
    theirs = torch.zeros((), dtype=torch.float64)
    for level, own in ((1, torch.tensor([5, 6])), (2, torch.tensor([20, 30, 31]))):
        pre = encoder.input_of(level, x) @ encoder.W_enc[:, own] + encoder.b_enc[own]
        theirs = theirs + ghost_gradient_loss(errors[level], pre, sae.W_dec[own], weights)
    torch.testing.assert_close(ours, theirs)
    inputs = [sae.W_enc, sae.b_enc, sae.W_dec]
    for got, want in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want)


def test_without_room_some_wait():
    sae = make_sae()
    errors, x = torch.randn(3, 6, D_IN), torch.randn(6, D_IN)
    dead = torch.ones(33, dtype=torch.bool)
    encoder = Encoder(sae.W_enc, sae.b_enc, None)
    ghost_gradients(errors, x, dead, (0, 0, 5), encoder, sae.W_dec, sae.levels).backward()
    assert sae.b_enc.grad is not None
    assert sae.b_enc.grad.nonzero().flatten().tolist() == [13, 14, 15, 16, 17]


def test_there_is_room_for_as_many_as_were_dead_and_more():
    levels = Levels((50, 3000, 100_000))
    assert places_for((0, 0, 0), levels) == (0, 0, 0)
    assert places_for((1, 1, 1), levels) == (50, 128, 128)
    assert places_for((50, 2000, 5000), levels) == (50, 3000, 8192)
