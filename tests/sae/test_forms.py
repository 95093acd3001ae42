"""Every form of a batch's activations has the losses, gradients and counts of the plain one; and which one is taken."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from feature_rows import KINDS
from small_saes import D_IN, at_step, make_sae, step_input

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.sae import forms
from sae_lens_hsae.sae.gpu_step import activation
from sae_lens_hsae.sae.step_output import LazyStepOutput


class Form(NamedTuple):
    """Devices on which a step takes rows, the density up to which it takes entries, and how much it does at a time."""

    row_devices: tuple[str, ...] = ()
    max_density: float = -1.0
    numbers_at_a_time: int = 2**23


FORMS = {
    "entries": Form(max_density=1.0),
    "rows": Form(("cpu",)),
    "rows in parts": Form(("cpu",), numbers_at_a_time=100),
    "row by row": Form(("cpu",), numbers_at_a_time=1),
}


WEIGHTED = {"outlier_limit": 2.0, "dead_feature_loss": "auxiliary"}
"""Tokens count less the farther out they lie."""
EVERY_KIND = KINDS | {"weighted": WEIGHTED, "weighted batchtopk": WEIGHTED | {"level_activation": "batchtopk"}}


def step_in(form: Form, sae: HierarchicalTrainingSAE, x: torch.Tensor, **kwargs: Any) -> Any:
    """The output of a step in a form, and the SAE with its gradients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HierarchicalTrainingSAE, "row_devices", form.row_devices)
        patch.setattr(forms, "MAX_DENSITY", form.max_density)
        patch.setattr(activation, "NUMBERS_AT_A_TIME", form.numbers_at_a_time)
        twin = at_step(copy.deepcopy(sae), 20)
        output = twin.training_forward_pass(step_input(x.to(sae.dtype), **kwargs))
        output.loss.backward()
    return output, twin


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_is_that_of_the_plain_form(batch: torch.Tensor, form: str, kind: str, dtype: str) -> None:
    fields: dict[str, Any] = {"structural_loss_coefficient": 0.3, "perturbation_rate": 0.5, "output_level": 0}
    fields |= {"hierarchy_first_update": 1000, "hierarchy_similarity": "conditional", **EVERY_KIND[kind]}
    sae, dead = make_sae(dtype=dtype, **fields), torch.arange(33) % 5 == 0
    is_weighted = kind not in KINDS
    if is_weighted:
        batch[::7] *= 20
        sae.standardization.observe(batch.to(sae.dtype), 0)
        sae.standardization.begin(sae.b_dec.data)
        sae.silent_features.tokens_since_fired[::4] = 10_000
    plain, of_plain = step_in(Form(), sae, batch, dead=dead, logging=True)
    ours, of_ours = step_in(FORMS[form], sae, batch, dead=dead, logging=True)
    assert isinstance(ours, LazyStepOutput)
    assert not isinstance(plain, LazyStepOutput)
    assert {"mse_loss", "structural_loss"} <= set(plain.losses)
    assert plain.losses["auxiliary_loss" if is_weighted else "ghost_gradient_loss"] > 0
    tolerance = {"float32": 1e-4, "float64": 1e-10}[dtype]
    near: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours.losses, plain.losses, **near)
    for name in ("sae_out", "feature_acts", "hidden_pre"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), **near)
    torch.testing.assert_close(ours.metrics, plain.metrics, rtol=1e-4, atol=1e-4)
    for name, parameter in of_plain.named_parameters():
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(of_ours.get_parameter(name).grad, parameter.grad, **near)
    state = of_ours.state_dict()
    assert len(state["forest_updater.recent.firing_tokens"])
    for name, tensor in of_plain.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_batch_on_which_nothing_fires(batch: torch.Tensor) -> None:
    sae = make_sae()
    sae.threshold.data.fill_(1e6)
    (plain, of_plain), (ours, of_ours) = (step_in(form, sae, batch) for form in (Form(), FORMS["entries"]))
    torch.testing.assert_close(ours.loss, plain.loss)
    for name, parameter in of_plain.named_parameters():
        torch.testing.assert_close(of_ours.get_parameter(name).grad, parameter.grad)


def taken(sae: HierarchicalTrainingSAE, x: torch.Tensor) -> str:
    return type(sae._activations(sae.process_sae_in(x))).__name__


def test_density_decides(batch: torch.Tensor) -> None:
    sae = make_sae(jumprelu_bandwidth=0.01)
    sae.threshold.data.fill_(0)
    assert taken(sae, batch) == "DenseActivations"
    sae.threshold.data.fill_(8)
    assert taken(sae, batch) == "ActiveEntries"


@pytest.mark.parametrize("hook", ["hook_sae_acts_pre", "hook_sae_acts_post"])
@pytest.mark.parametrize(("devices", "form"), [((), "ActiveEntries"), (("cpu",), "FeatureRows")])
def test_hooks_and_gradients_to_the_input_take_the_plain_form(
    batch: torch.Tensor, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], form: str, hook: str
) -> None:
    monkeypatch.setattr(HierarchicalTrainingSAE, "row_devices", devices)
    sae = make_sae()
    sae.threshold.data.fill_(8)
    assert taken(sae, batch) == form
    assert taken(sae, batch.clone().requires_grad_()) == "DenseActivations"
    getattr(sae, hook).add_hook(lambda tensor, hook: 2 * tensor)  # noqa: ARG005
    assert taken(sae, batch) == "DenseActivations"
    if not devices:
        assert taken(make_sae(dtype="bfloat16"), torch.zeros(4, D_IN, dtype=torch.bfloat16)) == "DenseActivations"
