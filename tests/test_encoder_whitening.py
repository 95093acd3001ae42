"""The whitened encoder: its formula, and that nothing outside training can tell it from a plain one."""

from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.encoder_whitening import (
    REFINED_AT,
    SHRINKAGE,
    change_coordinates,
    first_encoder,
    follow_moments,
    unwhitened,
    whitening_of,
)
from tests.conftest import D_IN, make_config, make_sae, step_input

WHITENED = {"whiten_encoder": True, "hierarchy_similarity": "conditional", "minimum_similarity": 0.1}


@pytest.fixture
def x():
    """Activations that vary 1000 times more along some directions than along others, about a large mean."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-2, 1, D_IN, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)).Q
    return 20 + (torch.randn(64, D_IN, generator=generator, dtype=torch.float64) * spread) @ rotation


def moments_of(x):
    return x.mean(0), x.T @ x / len(x)


def some_whitening(x):
    return whitening_of(*moments_of(x))


def test_the_matrix_is_the_inverse_root_of_the_shrunk_covariance(x):
    mean, matrix = some_whitening(x)
    covariance = np.cov(x.numpy().T, bias=True)
    shrunk = covariance + SHRINKAGE * np.trace(covariance) / D_IN * np.eye(D_IN)
    square = (matrix @ matrix).numpy()
    np.testing.assert_allclose(square / square[0, 0], np.linalg.inv(shrunk) / np.linalg.inv(shrunk)[0, 0], rtol=1e-6)
    torch.testing.assert_close(matrix, matrix.T)
    assert (((x - mean) @ matrix).square().sum(1).mean().sqrt()).item() == pytest.approx(D_IN**0.5)


def test_moments_are_means_over_batches(x):
    first, second = torch.zeros(D_IN, dtype=torch.float64), torch.zeros(D_IN, D_IN, dtype=torch.float64)
    for n, part in enumerate(x.split(16)):
        follow_moments(first, second, part, n)
    for followed, whole in zip((first, second), moments_of(x), strict=True):
        torch.testing.assert_close(followed, whole)


def test_activations_that_do_not_vary_are_only_centred():
    mean, matrix = some_whitening(torch.full((5, D_IN), 3.0, dtype=torch.float64))
    assert torch.equal(matrix, torch.eye(D_IN, dtype=torch.float64))
    assert torch.equal(mean, torch.full((D_IN,), 3.0, dtype=torch.float64))


def test_coordinates_change_and_pre_activations_stay(x):
    generator = torch.Generator().manual_seed(1)
    encoder = torch.randn(D_IN, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    old, new = some_whitening(x[:20]), some_whitening(x)
    expected = (x - old.mean) @ old.matrix @ encoder + bias
    changed, its_bias = change_coordinates(encoder, bias, old, new)
    torch.testing.assert_close((x - new.mean) @ new.matrix @ changed + its_bias, expected)
    plain, its_bias = unwhitened(encoder, bias, old)
    torch.testing.assert_close(x @ plain + its_bias, expected)


def test_the_first_encoder_is_that_of_linear_discriminant_analysis(x):
    decoder = torch.nn.functional.normalize(torch.randn(5, D_IN, dtype=torch.float64), dim=1)
    whitening = some_whitening(x)
    encoder = first_encoder(decoder, whitening)
    torch.testing.assert_close(encoder.norm(dim=0), torch.ones(5, dtype=torch.float64))
    in_x = unwhitened(encoder, torch.zeros(5, dtype=torch.float64), whitening)[0]
    covariance = torch.cov(x.T, correction=0)
    shrunk = covariance + SHRINKAGE * covariance.trace() / D_IN * torch.eye(D_IN, dtype=torch.float64)
    expected = torch.linalg.solve(shrunk, decoder.T)
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(in_x, expected, dim=0), torch.ones_like(in_x[0]))


def trained(x, n_steps, sae=None):
    """A whitened SAE after some steps of gradient descent."""
    sae = sae or make_sae(dtype="float64", **WHITENED)
    optimizer = torch.optim.SGD(sae.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(7)
    for step in range(n_steps):
        rows = x[torch.randperm(len(x), generator=generator)[:32]]
        if step < int(sae.n_steps):
            continue
        optimizer.zero_grad()
        sae.training_forward_pass(step_input(rows)).loss.backward()
        optimizer.step()
    return sae


def test_training_whitens_with_the_moments_of_the_batches_so_far(x):
    sae = trained(x, REFINED_AT[0])
    assert torch.equal(sae.whitening_matrix, torch.eye(D_IN))
    sae = trained(x, REFINED_AT[0] + 1, sae)
    generator, batches = torch.Generator().manual_seed(7), []
    for _ in range(REFINED_AT[0]):
        batches.append(x[torch.randperm(len(x), generator=generator)[:32]])
    mean, matrix = some_whitening(torch.cat(batches))
    torch.testing.assert_close(sae.whitening_mean, mean.float())
    torch.testing.assert_close(sae.whitening_matrix, matrix.float(), rtol=1e-4, atol=1e-5)


def test_a_second_whitening_changes_no_activation(x):
    sae = trained(x, REFINED_AT[1])
    before = sae.encode(x)
    sae.refine_whitening(REFINED_AT[1])
    assert not torch.equal(sae.whitening_matrix, torch.eye(D_IN))
    torch.testing.assert_close(sae.encode(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [None, 2.5])
def test_what_is_saved_reads_activations_as_they_are(x, tmp_path, factor):
    sae = trained(x, 40).eval()
    scale = factor or 1.0
    expected = sae.encode(x)
    if factor is not None:
        sae.fold_activation_norm_scaling_factor(factor)
    sae.save_inference_model(tmp_path)
    loaded: Any = SAE.load_from_disk(tmp_path)
    assert (expected > 0).any()
    # The whitening is kept in float32.
    torch.testing.assert_close(loaded.encode(x / scale) * scale, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.encode(x / scale) * scale, expected, rtol=1e-4, atol=1e-4)
    own = sae.levels[1]
    for whole in (sae, loaded):
        level = whole.level_sae(1)
        torch.testing.assert_close(level.encode(x / scale) * scale, expected[:, own], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_before_the_whitening_goes_on_to_the_same_bits(x, tmp_path):
    undisturbed = trained(x, 30)
    trained(x, REFINED_AT[0] - 3).save_model(tmp_path)
    resumed = HierarchicalTrainingSAE(make_config(dtype="float64", **WHITENED))
    resumed.load_weights_from_checkpoint(tmp_path)
    trained(x, 30, resumed)
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_cast_keeps_the_whitening_whole():
    sae = make_sae(**WHITENED)
    sae.whitening_mean.copy_(torch.arange(D_IN) + 1 / 3)
    kept = sae.whitening_mean.clone()
    sae.to(torch.bfloat16)
    assert torch.equal(sae.whitening_mean, kept)
    assert sae.moment_2.dtype == torch.float64


def test_b_dec_is_not_subtracted_where_the_mean_is():
    assert not make_config(whiten_encoder=True, apply_b_dec_to_input=True).apply_b_dec_to_input
    assert make_config(apply_b_dec_to_input=True).apply_b_dec_to_input


def test_errors():
    with pytest.raises(ValueError, match="whiten_encoder='yes': use True or False"):
        make_config(whiten_encoder="yes")
    with pytest.raises(ValueError, match=r"minimum_similarity=0\.4: of .coactivation. it is a share of all tokens"):
        make_config(hierarchy_similarity="coactivation", minimum_similarity=0.4)
    with pytest.raises(ValueError, match="minimum_similarity='high': give a number, or None"):
        make_config(minimum_similarity="high")
