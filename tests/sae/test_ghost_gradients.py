"""Ghost gradients against plain loops."""

import reference
import torch

from sae_lens_hsae.sae.ghost_gradients import ghost_gradient_loss


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


def test_large_pre_activations_do_not_overflow():
    error, pre, W_dec, dead = case()
    assert torch.isfinite(ghost_gradient_loss(error.float(), pre.float()[:, dead] + 500, W_dec.float()[dead]))
