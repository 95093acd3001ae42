"""Ghost gradients with places for dead features: that they equal those of the dead features alone."""

import pytest
import torch
from feature_rows import Watched
from small_saes import D_IN, make_sae

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.ghost_gradients import ghost_gradient_loss
from sae_lens_hsae.sae.gpu_step.ghosts import ghost_gradients, places_for
from sae_lens_hsae.sae.level_activation import Encoder


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
        pre = encoder.pre_activations(own, level, x)
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
