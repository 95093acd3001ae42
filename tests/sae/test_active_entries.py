"""Training on the active entries alone: when that form is taken, and that it equals the plain one in real training."""

import copy

import pytest
import reference
import torch
from conftest import D_IN, at_step, make_sae, step_input
from hypothesis import given, settings
from hypothesis import strategies as st
from test_structural_loss import random_case

from sae_lens_hsae.sae import forms
from sae_lens_hsae.sae.cpu_step.places import places_of
from sae_lens_hsae.sae.structural_loss import entries_structural_loss


@settings(max_examples=40, deadline=None)
@given(
    widths=st.sampled_from([(1, 2), (3, 7), (2, 5, 11), (2, 3, 4, 9), (1, 20)]),
    batch=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    inactive_share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_structural_loss_of_entries_equals_the_formula(widths, batch, seed, inactive_share):
    acts, W_dec, parents = random_case(widths, 3, batch, seed)
    generator = torch.Generator().manual_seed(seed)
    # Entries without value, between θ − ε/2 and θ, are none of the loss, and their gradient is the formula's.
    listed = (acts > 0) | (torch.rand(acts.shape, generator=generator) < inactive_share)
    found = listed.T.contiguous()
    places = places_of(found)
    ours = entries_structural_loss(acts.T[found], places, (places // batch).int(), found, W_dec, parents)
    theirs = reference.structural_loss(acts, W_dec, parents.tolist())
    torch.testing.assert_close(ours, theirs)
    if not (parents >= 0).any():
        return
    got = torch.autograd.grad(ours, [acts, W_dec], allow_unused=True, materialize_grads=True)
    want = torch.autograd.grad(theirs, [acts, W_dec])
    torch.testing.assert_close(got[0][listed], want[0][listed])
    torch.testing.assert_close(got[1], want[1])


def forms_of(sae, batch, **kwargs):
    """The training step's output and gradients, from all activations and from the entries."""
    results = []
    for density in (-1.0, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forms, "MAX_DENSITY", density)
            twin = at_step(copy.deepcopy(sae), 3)
            output = twin.training_forward_pass(step_input(batch, **kwargs))
            output.loss.backward()
            results.append((output, {name: parameter.grad for name, parameter in twin.named_parameters()}))
    return results


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("ste_to_input", [True, False])
def test_both_forms_have_the_same_losses_and_gradients(batch, dtype, apply_b_dec_to_input, ste_to_input):
    sae = make_sae(
        dtype=dtype,
        apply_b_dec_to_input=apply_b_dec_to_input,
        jumprelu_ste_to_input=ste_to_input,
        structural_loss_coefficient=0.3,
        perturbation_rate=0.5,
        hierarchy_first_update=1000,
        output_level=0,
    )
    dead = torch.arange(33) % 5 == 0
    (plain, plain_grads), (fast, fast_grads) = forms_of(sae, batch.to(sae.dtype), dead=dead, logging=True)
    tolerance = {"float32": 1e-4, "float64": 1e-10}[dtype]
    for name, loss in plain.losses.items():
        torch.testing.assert_close(fast.losses[name], loss, rtol=tolerance, atol=tolerance)
    for name in ("sae_out", "feature_acts", "hidden_pre"):
        torch.testing.assert_close(getattr(fast, name), getattr(plain, name), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(fast.metrics, plain.metrics, rtol=1e-4, atol=1e-4)
    for name, grad in plain_grads.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(fast_grads[name], grad, rtol=tolerance, atol=tolerance)


def test_a_batch_on_which_nothing_fires(batch):
    sae = make_sae()
    sae.threshold.data.fill_(1e6)
    (plain, plain_grads), (fast, fast_grads) = forms_of(sae, batch)
    torch.testing.assert_close(fast.loss, plain.loss)
    for name, grad in plain_grads.items():
        torch.testing.assert_close(fast_grads[name], grad)


def taken(sae, x):
    """The form that a step takes, by its class's name."""
    return type(sae._activations(sae.process_sae_in(x))).__name__


def test_density_decides(batch):
    sae = make_sae(jumprelu_bandwidth=0.01)
    sae.threshold.data.fill_(0)
    assert taken(sae, batch) == "DenseActivations"
    sae.threshold.data.fill_(8)
    assert taken(sae, batch) == "ActiveEntries"


def test_hooks_and_half_precision_take_the_plain_form(batch):
    sae = make_sae()
    sae.threshold.data.fill_(8)
    assert taken(sae, batch) == "ActiveEntries"
    assert taken(sae, batch.clone().requires_grad_()) == "DenseActivations"
    sae.hook_sae_acts_post.add_hook(lambda tensor, hook: 2 * tensor)  # noqa: ARG005
    assert taken(sae, batch) == "DenseActivations"
    assert taken(make_sae(dtype="bfloat16"), torch.zeros(4, D_IN, dtype=torch.bfloat16)) == "DenseActivations"
