"""Ghost gradients against plain loops."""

import reference
import torch
from sae_lens.saes.sae import TrainStepInput
from small_saes import D_IN, make_sae

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
        sae.forest_updater.n_steps.fill_(16)
        sae.forest_updater.forget()
        losses = sae.training_forward_pass(TrainStepInput(x, {}, dead, 20, False)).losses
        losses["ghost_gradient_loss"].backward()
        assert sae.W_enc.grad is not None
        norms.append(sae.W_enc.grad.norm().item())
    assert norms[1] < 2 * norms[0]


def test_large_pre_activations_do_not_overflow():
    error, pre, W_dec, dead = case()
    assert torch.isfinite(ghost_gradient_loss(error.float(), pre.float()[:, dead] + 500, W_dec.float()[dead]))
