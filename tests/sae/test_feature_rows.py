"""The GPU's form of a step, on CPU tensors: that it equals the plain one, waits for nothing, and keeps sums exact."""

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from feature_rows import KINDS, Watched, activations_of, losses, plain_in_float64, tokens, weighted_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from small_saes import make_sae

from sae_lens_hsae.sae.gpu_step import activation
from sae_lens_hsae.sae.gpu_step.family_products import _dots_of_few, _sums_of_few, dots_within, sums_within
from sae_lens_hsae.sae.gpu_step.products import exact_product
from sae_lens_hsae.sae.perturbation import draw_replaced, replacements
from sae_lens_hsae.sae.structural_loss import families_of


@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 9), n_families=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_dots_and_sums_within_families(size: int, n_families: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    weights = torch.randn(n_families, size, size, generator=generator, dtype=torch.float64)
    members = torch.randint(30, (n_families, size), generator=generator)
    torch.testing.assert_close(
        dots_within(table, members), torch.einsum("fik,fjk->fij", table[members], table[members])
    )
    torch.testing.assert_close(
        sums_within(table, members, weights), torch.einsum("fij,fjk->fik", weights, table[members])
    )


def test_the_watch_sees_what_waits() -> None:
    x = torch.tensor([0.0, 1.0])
    waiting: list[Callable[[], object]] = [
        lambda: x[1].item(), lambda: int(x[1]), lambda: bool(x[1]), lambda: x[x > 0], lambda: torch.nonzero(x),
        lambda: torch.bincount(x.int()), lambda: x.unique(),
    ]  # fmt: skip
    for action in waiting:
        with Watched(), pytest.raises(AssertionError, match="waits"):
            action()


@pytest.mark.parametrize("kind", KINDS)
def test_it_waits_for_nothing_and_has_the_same_shapes_whatever_fires(kind: str) -> None:
    sae = make_sae(**KINDS[kind])
    families = families_of(sae.parents)
    seen = []
    for seed, rate in ((1, 0.6), (2, 0.9)):
        x = tokens(torch.float32, seed) * seed
        replaced = replacements(draw_replaced(sae.parents, rate, 0, seed), sae.parents, sae.levels)
        sae.zero_grad()
        with Watched() as watched:
            acts = activations_of(sae, x)
            errors = x - acts.reconstruct(sae.W_dec, sae.b_dec, replaced)
            loss = errors.square().sum() + acts.l0().sum() + acts.structural_loss(sae.W_dec, families)
            loss.backward()
            acts.firing(0)
            acts.times_fired()
            acts.smallest()
        seen.append(watched.seen)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_rounds_factors_and_no_sums(kind: str) -> None:
    _, x, expected, expected_grads = plain_in_float64(kind, 1000)
    single = make_sae(**KINDS[kind])
    with torch.autocast("cpu", torch.bfloat16):
        acts = activations_of(single, x.float())
        terms = losses(single, x.float(), acts)
        firing = acts.firing(7).unpacked()
    assert (firing.step, firing.tokens.tolist()) == (7, (acts.dense().T != 0).nonzero()[:, 1].tolist())
    assert acts.rows.dtype == torch.bfloat16
    assert acts.dense().dtype == acts.pre_activations.dense().dtype == torch.float32
    assert terms.dtype == torch.float32
    grads = weighted_gradients(single, terms)
    torch.testing.assert_close(terms.double(), expected, rtol=0.01, atol=0.01)
    for name, grad in expected_grads.items():
        assert grads[name].dtype == torch.float32
        assert (grads[name] - grad).norm() < 0.05 * grad.norm(), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.skipif(shutil.which("cc") is None, reason="torch.compile needs a C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_one_kernel_they_are_the_same(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(kind)

    functions: list[Any] = [activation._fire, activation._gradients, _dots_of_few, _sums_of_few]
    plain = [function.__wrapped__ for function in functions]
    kernels = [torch.compile(function, dynamic=True, fullgraph=True) for function in plain]
    for n, size in ((48, 3), (96, 3)):
        table, of_values = normal(n, 20, kind=dtype), normal(n, 20, kind=dtype)
        bias, threshold, of_times = normal(3, n)
        weights = torch.rand(20, generator=generator)
        members = list(torch.randint(n, (size, 7), generator=generator))
        inputs: list[tuple[Any, ...]] = [
            (table, bias, threshold, torch.zeros_like(table), weights),
            (table, bias, threshold, of_values, of_times, torch.zeros_like(table), weights, 1.5, True),
            (table, members),
            (table, members, normal(7, size, size)),
        ]
        for function, kernel, own in zip(plain, kernels, inputs, strict=True):
            its = copy.deepcopy(own)
            torch.testing.assert_close(kernel(*its), function(*own), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(its, own)  # what they write to as well


def test_sums_of_half_precision_products_are_kept() -> None:
    ones = torch.ones(1, 257, dtype=torch.bfloat16)
    assert (ones @ ones.T).item() == 256
    assert exact_product(ones, ones.T).item() == 257
    assert exact_product(ones[None], ones.T[None]).dtype == torch.float32
