"""L_PC against plain loops: values, gradients, and what it may hold in memory (HSAE §3.1)."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_case
from small_saes import LargestTensor

from sae_lens_hsae.sae.cpu_step.places import places_of
from sae_lens_hsae.sae.gpu_step.family_products import StructuralLoss
from sae_lens_hsae.sae.structural_loss import (
    entries_structural_loss,
    families_of,
    structural_loss,
)


def in_full(acts, W_dec, parents, listed):  # noqa: ARG001
    return structural_loss(acts, W_dec, families_of(parents))


def of_rows(acts, W_dec, parents, listed):  # noqa: ARG001
    return StructuralLoss.apply(acts.T.contiguous(), W_dec, W_dec.detach(), families_of(parents))


def of_entries(acts, W_dec, parents, listed):
    found = listed.T.contiguous()
    places = places_of(found)
    return entries_structural_loss(acts.T[found], places, (places // len(acts)).int(), found, W_dec, parents)


@pytest.mark.parametrize("form", [in_full, of_rows, of_entries])
@settings(max_examples=40, deadline=None)
@given(
    widths=st.sampled_from([(1, 2), (3, 7), (2, 5, 11), (2, 3, 4, 9), (1, 20)]),
    d_in=st.sampled_from([1, 3, 8]),
    batch=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    inactive_share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_value_and_gradients_equal_the_formula(form, widths, d_in, batch, seed, inactive_share):
    acts, W_dec, parents = random_case(widths, d_in, batch, seed)
    listed = torch.ones_like(acts, dtype=torch.bool)
    if form is of_entries:  # those without value, between θ − ε/2 and θ, are none of the loss and have a gradient
        inactive = torch.rand(acts.shape, generator=torch.Generator().manual_seed(seed)) < inactive_share
        listed = (acts > 0) | inactive
    ours = form(acts, W_dec, parents, listed)
    theirs = reference.structural_loss(acts, W_dec, parents.tolist())
    torch.testing.assert_close(ours, theirs)
    if not (parents >= 0).any():
        return
    got = torch.autograd.grad(ours, [acts, W_dec], allow_unused=True, materialize_grads=True)
    want = torch.autograd.grad(theirs, [acts, W_dec])
    torch.testing.assert_close(got[0][listed], want[0][listed])
    torch.testing.assert_close(got[1], want[1])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), widths=st.sampled_from([(1, 40), (4, 9), (5, 6, 30)]))
def test_every_child_is_in_the_family_of_its_parent_and_in_no_other(seed, widths):
    _, _, parents = random_case(widths, 1, 1, seed)
    found = {}
    families = families_of(parents)
    sizes = [n_families * size for n_families, size in families.shapes]
    for shape, members, signs in zip(
        families.shapes, families.members.split(sizes), families.signs.split(sizes), strict=True
    ):
        members, signs = members.view(shape), signs.view(shape)
        assert shape[1] <= 2 * (signs < 0).sum(1).min() + 1, "padding must at most double a family"
        for family, sign in zip(members.tolist(), signs.tolist(), strict=True):
            assert sign[0] == 1
            for member, s in zip(family[1:], sign[1:], strict=True):
                assert s in (-1, 0)
                if s == -1:
                    assert member not in found
                    found[member] = family[0]
    assert found == {child: parent for child, parent in enumerate(parents.tolist()) if parent >= 0}


def test_nothing_of_the_shape_batch_features_d_in_is_ever_made():
    batch, n_parents, n_children, d_in = 64, 200, 400, 96
    parents = torch.cat([torch.full((n_parents,), -1), torch.arange(n_children) % n_parents])
    acts = torch.rand(batch, n_parents + n_children, requires_grad=True)
    W_dec = torch.rand(n_parents + n_children, d_in, requires_grad=True)
    families = families_of(parents)
    with LargestTensor() as largest:
        structural_loss(acts, W_dec, families).backward()
    assert 0 < largest.largest <= 4 * 2 * max(acts.numel(), W_dec.numel())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_accumulates_in_float32_at_any_precision(dtype):
    acts, W_dec, parents = random_case((4, 9, 20), 8, 16, seed=1)
    exact = structural_loss(acts, W_dec, families_of(parents))
    rounded = structural_loss(acts.detach().to(dtype), W_dec.detach().to(dtype), families_of(parents))
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-2)
