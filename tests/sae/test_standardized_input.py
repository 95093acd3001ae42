"""Standardized input: its formulas, that outlying tokens cannot spoil it, and that nothing outside training sees it."""

from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.sae.input_statistics import (
    OBSERVED_STEPS,
    SHRINKAGE,
    Moments,
    follow_moments,
    for_scaled,
    matched_filters,
    statistics_of,
    weights_of,
)
from tests.conftest import D_IN, make_config, make_sae, step_input, tensors_of

STANDARDIZED = {
    "whiten_encoder": True,
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
    shapes = ((D_IN,), (), (), (D_IN,), (D_IN, D_IN))
    return Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))


def moments_of(*batches, limit=None):
    moments = no_moments()
    for n, batch in enumerate(batches):
        follow_moments(moments, batch, limit, n)
    return moments


def with_sinks(x, share, times, generator):
    """``x`` with a share of its tokens moved far away, along one direction."""
    is_sink = torch.rand(len(x), generator=generator) < share
    typical = (x - x.median(0).values).norm(dim=1).median()
    direction = torch.nn.functional.normalize(torch.randn(D_IN, generator=generator, dtype=x.dtype), dim=0)
    return x + times * typical * is_sink[:, None] * direction, is_sink


def test_the_matrix_is_the_inverse_root_of_the_shrunk_covariance(x):
    scale, mean, matrix = statistics_of(moments_of(x))
    covariance = np.cov(x.numpy().T, bias=True)
    shrunk = covariance + SHRINKAGE * np.trace(covariance) / D_IN * np.eye(D_IN)
    square = (matrix @ matrix).numpy()
    np.testing.assert_allclose(square / square[0, 0], np.linalg.inv(shrunk) / np.linalg.inv(shrunk)[0, 0], rtol=1e-6)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(mean, scale * x.mean(0))
    assert (((scale * x - mean) @ matrix).square().sum(1).mean().sqrt()).item() == pytest.approx(D_IN**0.5)


def test_the_scale_brings_the_median_distance_to_the_root_of_d(x):
    scale = statistics_of(moments_of(x)).scale
    assert (scale * (x - x.median(0).values).norm(dim=1).median()).item() == pytest.approx(D_IN**0.5)


def test_moments_are_means_over_batches(x):
    parts = x.split(128)
    moments = moments_of(*parts)
    torch.testing.assert_close(moments.first, x.mean(0))
    torch.testing.assert_close(moments.second, x.T @ x / len(x))
    torch.testing.assert_close(moments.centre, torch.stack([part.median(0).values for part in parts]).mean(0))


def test_moments_with_a_limit_equal_a_loop_over_tokens(x):
    limit = 1.5
    moments = moments_of(x, limit=limit)
    centre = x.median(0).values
    typical = (x - centre).norm(dim=1).median()
    first, second, total = torch.zeros_like(x[0]), torch.zeros_like(moments.second), 0.0
    for token in x:
        weight = min(1.0, float((limit * typical / (token - centre).norm()) ** 2))
        first, second, total = first + weight * token, second + weight * torch.outer(token, token), total + weight
    assert total < len(x)
    torch.testing.assert_close(moments.first / moments.weight, first / total)
    torch.testing.assert_close(moments.second / moments.weight, second / total)


@pytest.mark.parametrize("times", [10, 1000])
def test_outlying_tokens_hardly_move_the_statistics(x, times):
    clean = statistics_of(moments_of(x, limit=3.0))
    moved = statistics_of(moments_of(with_sinks(x, 0.01, times, torch.Generator().manual_seed(3))[0], limit=3.0))
    assert moved.scale.item() == pytest.approx(clean.scale.item(), rel=0.02)
    z = [(scale * x - mean) @ matrix for scale, mean, matrix in (clean, moved)]
    cosines = torch.nn.functional.cosine_similarity(*z, dim=1)
    assert cosines.median() > 0.98
    # Without a limit they own the covariance.
    spoilt = statistics_of(moments_of(with_sinks(x, 0.01, times, torch.Generator().manual_seed(3))[0]))
    assert (spoilt.matrix - clean.matrix).norm() > 2 * (moved.matrix - clean.matrix).norm()


def test_a_token_beyond_the_limit_counts_as_one_at_it():
    distance = torch.tensor([0.0, 1.0, 3.0, 30.0], dtype=torch.float64)
    weights = weights_of(distance, 3.0)
    torch.testing.assert_close(weights, torch.tensor([1, 1, 1, 0.01], dtype=torch.float64))


def test_activations_that_do_not_vary_are_only_centred():
    scale, mean, matrix = statistics_of(moments_of(torch.full((5, D_IN), 3.0, dtype=torch.float64), limit=3.0))
    assert scale == 1
    assert torch.equal(matrix, torch.eye(D_IN, dtype=torch.float64))
    assert torch.equal(mean, torch.full((D_IN,), 3.0, dtype=torch.float64))


def test_the_first_encoder_is_that_of_linear_discriminant_analysis(x):
    decoder = torch.nn.functional.normalize(torch.randn(5, D_IN, dtype=torch.float64), dim=1)
    statistics = statistics_of(moments_of(x))
    encoder = matched_filters(decoder, statistics.matrix)
    torch.testing.assert_close(encoder.norm(dim=0), torch.ones(5, dtype=torch.float64))
    in_x, bias = for_scaled(encoder, torch.zeros(5, dtype=torch.float64), statistics)
    scaled = statistics.scale * x
    torch.testing.assert_close(scaled @ in_x + bias, (scaled - statistics.mean) @ statistics.matrix @ encoder)
    covariance = torch.cov(x.T, correction=0)
    shrunk = covariance + SHRINKAGE * covariance.trace() / D_IN * torch.eye(D_IN, dtype=torch.float64)
    expected = torch.linalg.solve(shrunk, decoder.T)
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(in_x, expected, dim=0), torch.ones_like(in_x[0]))


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
    scale, mean, matrix = statistics_of(moments_of(*batches(x, OBSERVED_STEPS), limit=3.0))
    torch.testing.assert_close(sae.standardization.input_scale, scale.float())
    torch.testing.assert_close(sae.standardization.input_mean, mean.float())
    torch.testing.assert_close(sae.standardization.whitening_matrix, matrix.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.b_dec, mean.expand_as(sae.b_dec))


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
    z = (scaled - sae.standardization.input_mean.double()) @ sae.standardization.whitening_matrix.double()
    pre = z @ sae.W_enc + sae.b_enc
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


@pytest.mark.parametrize("factor", [None, 2.5])
@pytest.mark.parametrize("whiten", [True, False])
def test_what_is_saved_reads_activations_as_they_are(x, tmp_path, factor, whiten):
    sae = trained(x, 40, make_sae(dtype="float64", **{**STANDARDIZED, "whiten_encoder": whiten})).eval()
    sae.project_parameters()
    scale = factor or 1.0
    expected = sae.encode(x)
    reconstruction, of_level_1 = sae.decode(expected), sae.decode_level(expected, 1)
    if factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    sae.save_inference_model(tmp_path)
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


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("n_steps", [OBSERVED_STEPS - 3, 40])
def test_a_checkpoint_that_is_read_as_a_model_reads_activations_as_they_are(x, tmp_path, whiten, n_steps):
    sae = trained(x, n_steps, make_sae(dtype="float64", **{**STANDARDIZED, "whiten_encoder": whiten})).eval()
    sae.project_parameters()
    sae.save_model(tmp_path)
    loaded: Any = SAE.load_from_disk(tmp_path)
    assert (sae.encode(x) > 0).any()
    torch.testing.assert_close(loaded.encode(x), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded(x), sae(x), rtol=1e-4, atol=1e-4)


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
    assert sae.standardization.moments_second.dtype == torch.float64


def test_without_whitening_or_limit_nothing_is_observed(x):
    sae = make_sae(dtype="float64", whiten_encoder=False, outlier_limit=None)
    assert not sae.standardization.is_observing(0)
    assert "input_scale" not in tensors_of(sae)
    assert sae.training_forward_pass(step_input(x)).loss > 0


def test_b_dec_is_not_subtracted_where_the_mean_is():
    assert not make_config(whiten_encoder=True, apply_b_dec_to_input=True).apply_b_dec_to_input
    assert make_config(apply_b_dec_to_input=True).apply_b_dec_to_input


def test_errors():
    with pytest.raises(ValueError, match="whiten_encoder='yes': use True or False"):
        make_config(whiten_encoder="yes")
    with pytest.raises(
        ValueError, match="outlier_limit=0: it is a multiple of the median distance: 1 or more, or None"
    ):
        make_config(outlier_limit=0)
    with pytest.raises(ValueError, match=r"minimum_similarity=0\.4: of .coactivation. it is a share of all tokens"):
        make_config(hierarchy_similarity="coactivation", minimum_similarity=0.4)
    with pytest.raises(ValueError, match="minimum_similarity='high': give a number, or None"):
        make_config(minimum_similarity="high")
