"""Standardized input: its formulas, that outlying tokens cannot spoil it, and that nothing outside training sees it."""

from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.training.sae_trainer import SAETrainer
from short_trainings import batches as short_batches
from short_trainings import new_trainer, take_steps
from small_saes import D_IN, make_config, make_sae, step_input, tensors_of

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.config_checks import OBSERVED_STEPS
from sae_lens_hsae.sae.standardized_input import Moments, follow_moments
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

STANDARDIZED = {
    "outlier_limit": 3.0,
    "hierarchy_similarity": "conditional",
    "minimum_similarity": 0.1,
    "perturbation_rate": 0.0,
}


@pytest.fixture
def x():
    """Activations that vary 1000 times more along some directions than along others, about a large mean."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-2, 1, D_IN, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)).Q
    return 20 + (torch.randn(512, D_IN, generator=generator, dtype=torch.float64) * spread) @ rotation


def no_moments():
    shapes = ((D_IN,), (), (), (D_IN,))
    return Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


def moments_of(*batches, limit=1e9):
    moments = no_moments()
    for n, batch in enumerate(batches):
        follow_moments(moments, batch, limit, n)
    return moments


def begun(*batches, limit=3.0):
    """Scale and mean that a training begins with after it has observed some batches."""
    fields: dict[str, Any] = STANDARDIZED | {"outlier_limit": limit}
    sae = make_sae(dtype="float64", **fields)
    for step, batch in enumerate(batches):
        sae.standardization.observe(batch, step)
    sae.standardization.begin(sae.b_dec.data)
    return sae.standardization.input_scale.double(), sae.standardization.input_mean.double()


def with_sinks(x, share, times, generator):
    """``x`` with a share of its tokens moved far away, along one direction."""
    is_sink = torch.rand(len(x), generator=generator) < share
    typical = (x - x.median(0).values).norm(dim=1).median()
    direction = torch.nn.functional.normalize(torch.randn(D_IN, generator=generator, dtype=x.dtype), dim=0)
    return x + times * typical * is_sink[:, None] * direction, is_sink


def test_the_scale_brings_the_median_distance_to_the_root_of_d(x):
    scale, mean = begun(x, limit=1e9)
    assert (scale * (x - x.median(0).values).norm(dim=1).median()).item() == pytest.approx(D_IN**0.5)
    torch.testing.assert_close(mean, scale * x.mean(0), rtol=1e-6, atol=1e-6)


def test_moments_are_means_over_batches(x):
    parts = x.split(128)
    moments = moments_of(*parts)
    torch.testing.assert_close(moments.first, x.mean(0))
    torch.testing.assert_close(moments.centre, torch.stack([part.median(0).values for part in parts]).mean(0))


def test_moments_with_a_limit_equal_a_loop_over_tokens(x):
    limit = 1.5
    moments = moments_of(x, limit=limit)
    centre = x.median(0).values
    typical = (x - centre).norm(dim=1).median()
    first, total = torch.zeros_like(x[0]), 0.0
    for token in x:
        weight = min(1.0, float((limit * typical / (token - centre).norm()) ** 2))
        first, total = first + weight * token, total + weight
    assert total < len(x)
    torch.testing.assert_close(moments.first / moments.weight, first / total)


@pytest.mark.parametrize("times", [10, 1000])
def test_outlying_tokens_hardly_move_scale_and_mean(x, times):
    far = with_sinks(x, 0.01, times, torch.Generator().manual_seed(3))[0]
    (scale, mean), (moved_scale, moved_mean), (_, spoilt_mean) = begun(x), begun(far), begun(far, limit=1e9)
    assert moved_scale.item() == pytest.approx(scale.item(), rel=0.02)
    # In units of the typical distance; without a limit they own the mean.
    assert (moved_mean - mean).norm() < 0.05 * D_IN**0.5
    assert (spoilt_mean - mean).norm() > 3 * (moved_mean - mean).norm()


def test_activations_that_do_not_vary_keep_their_scale():
    scale, mean = begun(torch.full((5, D_IN), 3.0, dtype=torch.float64))
    assert scale == 1
    assert torch.equal(mean, torch.full((D_IN,), 3.0, dtype=torch.float64))


def batches(x, n_steps):
    generator = torch.Generator().manual_seed(7)
    return [x[torch.randperm(len(x), generator=generator)[:64]] for _ in range(n_steps)]


def trained(x, n_steps, sae=None, lr=1e-3):
    """A standardized SAE after some steps of gradient descent."""
    sae = sae or make_sae(dtype="float64", **STANDARDIZED)
    optimizer = torch.optim.SGD(sae.parameters(), lr=lr)
    for step, rows in enumerate(batches(x, n_steps)):
        if step < int(sae.forest_updater.n_steps):
            continue
        optimizer.zero_grad()
        sae.training_forward_pass(step_input(rows)).loss.backward()
        optimizer.step()
    return sae


def test_the_first_steps_only_observe(x):
    sae = make_sae(dtype="float64", **STANDARDIZED)
    before = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    trained(x, OBSERVED_STEPS, sae)
    assert int(sae.forest_updater.n_steps) == OBSERVED_STEPS
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=1e-14, atol=0)
    sae = trained(x, OBSERVED_STEPS + 1, sae, lr=0.0)
    scale, mean = begun(*batches(x, OBSERVED_STEPS))
    torch.testing.assert_close(sae.standardization.input_scale.double(), scale)
    torch.testing.assert_close(sae.standardization.input_mean.double(), mean)
    torch.testing.assert_close(sae.b_dec, mean.expand_as(sae.b_dec))


@pytest.mark.parametrize("trainer_class", [SAETrainer, HierarchicalSAETrainer])
def test_adam_counts_no_step_that_only_observes(trainer_class):
    """It would take the first ones after them for later ones, and make them up to four times as large."""
    trainer = new_trainer(trainer_class, outlier_limit=3.0)
    take_steps(trainer, short_batches(), OBSERVED_STEPS)
    counted = {name for name, each in trainer.sae.named_parameters() if trainer.optimizer.state.get(each)}
    assert counted == {"b_dec"}
    take_steps(trainer, short_batches(), 1)
    for name, parameter in trainer.sae.named_parameters():
        assert int(trainer.optimizer.state[parameter]["step"]) == (OBSERVED_STEPS + 1 if name == "b_dec" else 1)


def test_losses_are_those_of_scaled_activations_with_outliers_counting_less(x):
    far, is_sink = with_sinks(x, 0.05, 30, torch.Generator().manual_seed(3))
    sae = trained(far, OBSERVED_STEPS + 5)
    sae.cfg.structural_loss_coefficient = 0.5
    sae.parents.fill_(-1)
    sae.parents[sae.levels[1].start] = 0
    sae.forest_updater.forget()
    log_coefficient, ema = sae.sparsity.log_l0_coefficient.clone(), sae.sparsity.l0_ema.clone()
    output = sae.training_forward_pass(step_input(far))
    scaled = sae.standardization.input_scale.double() * far
    weights = (3 * D_IN**0.5 / (scaled - sae.standardization.input_mean.double()).norm(dim=1)).clamp(max=1) ** 2
    assert (weights < 0.02).sum() == is_sink.sum() > 10
    torch.testing.assert_close(sae.standardization.token_weights(scaled), weights, rtol=1e-5, atol=1e-6)
    of_levels = zip(sae.levels, sae.b_dec, strict=True)
    pre = torch.cat([(scaled - bias) @ sae.W_enc[:, own] + sae.b_enc[own] for own, bias in of_levels], dim=1)
    acts = torch.where(pre > sae.threshold, pre, 0.0)
    expected = sum(
        (weights * (acts[:, own] @ sae.W_dec[own] + bias - scaled).square().sum(1)).mean()
        for own, bias in zip(sae.levels, sae.b_dec, strict=True)
    )
    torch.testing.assert_close(output.losses["mse_loss"], expected, rtol=1e-5, atol=1e-5)
    l0 = torch.stack([(weights * (acts[:, own] > 0).sum(1)).sum() / weights.sum() for own in sae.levels])
    torch.testing.assert_close(
        output.losses["l0_loss"], (log_coefficient.exp() * l0).sum(), rtol=1e-5, atol=1e-5, check_dtype=False
    )
    torch.testing.assert_close(sae.sparsity.l0_ema, (0.95 * ema + 0.05 * l0).float())
    parent, child = 0, sae.levels[1].start
    family = (acts[:, parent, None] * sae.W_dec[parent] - acts[:, child, None] * sae.W_dec[child]).square().sum(1)
    torch.testing.assert_close(output.losses["structural_loss"], 0.5 * (weights * family).mean(), rtol=1e-5, atol=1e-6)


def test_outputs_are_in_the_units_of_the_activations(x):
    sae = trained(x, OBSERVED_STEPS + 5).eval()
    output = sae.training_forward_pass(step_input(x))
    torch.testing.assert_close(output.sae_out, sae.decode(sae.encode(x)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output.feature_acts, sae.encode(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(output.sae_in, x)
    scale = sae.standardization.input_scale.double()
    for name, values in sae.log_histograms().items():
        own = tensors_of(sae)[name.removeprefix("weights/")]
        torch.testing.assert_close(torch.tensor(values) * scale, own.double())


@pytest.mark.parametrize(
    ("save", "n_steps", "factor"),
    [
        ("save_inference_model", 40, None),
        ("save_inference_model", 40, 2.5),
        ("save_model", 40, None),
        ("save_model", OBSERVED_STEPS - 3, None),
    ],
)
def test_what_is_saved_reads_activations_as_they_are(x, tmp_path, save, n_steps, factor):
    sae = trained(x, n_steps).eval()
    sae.project_parameters()
    scale = factor or 1.0
    expected = sae.encode(x)
    reconstruction, of_level_1 = sae.decode(expected), sae.decode_level(expected, 1)
    if factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    getattr(sae, save)(tmp_path)
    loaded: Any = SAE.load_from_disk(tmp_path)
    assert (expected > 0).any()
    # The statistics are kept in float32.
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    for own in (loaded, sae):
        torch.testing.assert_close(own.encode(x / scale) * scale, expected, **close)
        torch.testing.assert_close(own(x / scale) * scale, reconstruction, **close)
    own = sae.levels[1]
    for whole in (sae, loaded):
        level = whole.level_sae(1)
        torch.testing.assert_close(level.encode(x / scale) * scale, expected[:, own], **close)
        torch.testing.assert_close(level(x / scale) * scale, of_level_1, **close)


@pytest.mark.parametrize("saved_at", [OBSERVED_STEPS - 3, OBSERVED_STEPS, OBSERVED_STEPS + 4])
def test_a_resumed_training_goes_on_to_the_same_bits(x, tmp_path, saved_at):
    undisturbed = trained(x, 30)
    trained(x, saved_at).save_model(tmp_path)
    resumed = HierarchicalTrainingSAE(make_config(dtype="float64", **STANDARDIZED))
    resumed.load_weights_from_checkpoint(tmp_path)
    trained(x, 30, resumed)
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_cast_keeps_the_statistics_whole():
    sae = make_sae(**STANDARDIZED)
    sae.standardization.input_mean.copy_(torch.arange(D_IN) + 1 / 3)
    kept = sae.standardization.input_mean.clone()
    sae.to(torch.bfloat16)
    assert torch.equal(sae.standardization.input_mean, kept)
    assert sae.standardization.moments_first.dtype == torch.float32


def test_without_a_limit_nothing_is_observed(x):
    sae = make_sae(dtype="float64", outlier_limit=None)
    assert not sae.standardization.is_observing(0)
    assert "input_scale" not in tensors_of(sae)
    assert sae.training_forward_pass(step_input(x)).loss > 0
