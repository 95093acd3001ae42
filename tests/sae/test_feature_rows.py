"""The GPU's form of a step, on CPU tensors: that it equals the plain one, waits for nothing, and keeps sums exact."""

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from feature_rows import KINDS, Watched, activations_of, losses, plain_activations_of, tokens, weighted_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from small_saes import D_IN, at_step, make_sae, step_input, tensors_of

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.sae.gpu_step import activation
from sae_lens_hsae.sae.gpu_step.family_products import _dots_of_few, _sums_of_few, dots_within, sums_within
from sae_lens_hsae.sae.gpu_step.products import exact_product
from sae_lens_hsae.sae.perturbation import draw_replaced, replacements
from sae_lens_hsae.sae.step_output import LazyStepOutput
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
    sae, x = make_sae(dtype="float64", **KINDS[kind]), tokens(n=1000)
    expected = losses(sae, x, plain_activations_of(sae, x))
    expected_grads = weighted_gradients(sae, expected)
    single = make_sae(**KINDS[kind])
    with torch.autocast("cpu", torch.bfloat16):
        acts = activations_of(single, x.float())
        terms = losses(single, x.float(), acts)
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
    for n, size in ((64, 2), (48, 3), (96, 3)):
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


@pytest.mark.parametrize("rule", ["jumprelu", "batchtopk"])
def test_tokens_that_count_less_do_so_in_both_forms(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, D_IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x[::7] *= 20
    results = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(HierarchicalTrainingSAE, "row_devices", devices)
        monkeypatch.setattr("sae_lens_hsae.sae.forms.MAX_DENSITY", -1.0)
        sae = make_sae(
            dtype="float64",
            outlier_limit=2.0,
            perturbation_rate=0.0,
            structural_loss_coefficient=0.3,
            level_activation=rule,
            dead_feature_loss="auxiliary",
            hierarchy_first_update=1000,
        )
        sae.standardization.observe(x, 0)
        sae.standardization.begin(sae.b_dec.data)
        sae.silent_features.tokens_since_fired[::4] = 10_000
        output = at_step(sae, 20).training_forward_pass(step_input(x))
        output.loss.backward()
        results.append((output, sae))
    (plain, of_plain), (ours, of_ours) = results
    assert isinstance(ours, LazyStepOutput)
    assert plain.losses["auxiliary_loss"] > 0
    torch.testing.assert_close(ours.losses, plain.losses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.feature_acts, plain.feature_acts, rtol=1e-9, atol=1e-9)
    for name, parameter in of_plain.named_parameters():
        torch.testing.assert_close(of_ours.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-9)
    for name in ("l0_ema", "tokens_since_fired"):
        torch.testing.assert_close(tensors_of(of_ours)[name], tensors_of(of_plain)[name])


def test_firing_is_that_of_every_token() -> None:
    sae, x = make_sae(), tokens(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        acts = activations_of(sae, x)
        firing = acts.firing(7).unpacked()
    fired = acts.dense().T != 0
    assert (firing.step, firing.n_tokens) == (7, len(x))
    assert firing.times.tolist() == fired.sum(1).tolist()
    assert firing.times.any()
    assert firing.tokens.tolist() == fired.nonzero()[:, 1].tolist()
