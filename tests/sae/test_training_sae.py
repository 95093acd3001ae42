"""The training SAE: what it adds up to, and what it never does."""

import copy
from typing import Any

import pytest
import reference
import torch
from forms import both_forms, one_form
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import _unwrap_item
from small_saes import D_IN, WIDTHS, at_step, make_sae, step_input, tensors_of
from torch.utils._python_dispatch import TorchDispatchMode

from sae_lens_hsae.sae.bad_batches import BadBatchError
from sae_lens_hsae.sae.inference import CAST_TENSORS
from sae_lens_hsae.sae.level_activation import Encoder
from sae_lens_hsae.sae.perturbation import draw_replaced
from sae_lens_hsae.sae.silent_features import auxiliary_loss

pytestmark = both_forms


def independent_saes(sae):
    """One of SAELens' own SAEs per level, with the level's weights."""
    fields: dict[str, Any] = {name: getattr(sae.cfg, name) for name in ("d_in", "dtype", "apply_b_dec_to_input")}
    of_jumprelu = {name: getattr(sae.cfg, name) for name in ("jumprelu_bandwidth", "jumprelu_ste_to_input")}
    saes = []
    for level, (own, k) in enumerate(zip(sae.levels, sae.cfg.target_l0_per_level, strict=True)):
        fields["d_sae"] = own.stop - own.start
        if sae.cfg.level_activation == "batchtopk":
            single: Any = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=k, **fields))
        else:
            single = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**fields, **of_jumprelu))
            single.threshold.data = sae.threshold.data[own].clone()
        single.b_enc.data, single.W_dec.data = sae.b_enc.data[own].clone(), sae.W_dec.data[own].clone()
        single.W_enc.data = sae.W_enc.data[:, own].clone()
        single.b_dec.data = sae.b_dec.data[level].clone()
        saes.append(single)
    return saes


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        *({"jumprelu_ste_to_input": ste, "dtype": dtype} for ste in (True, False) for dtype in ("float32", "float64")),
        {"level_activation": "batchtopk", "target_l0": [1.3, 2.0, 4.7], "dtype": "float64"},
    ],
    ids=str,
)
def test_without_hierarchy_it_is_independent_saes_of_saelens(batch, form, apply_b_dec_to_input, fields):
    without = {"structural_loss_coefficient": 0.0, "perturbation_rate": 0.0}
    sae = make_sae(apply_b_dec_to_input=apply_b_dec_to_input, **without, **fields)
    coefficients = [0.0] * 3
    if sae.cfg.level_activation == "jumprelu":
        sae.sparsity.log_l0_coefficient.copy_(torch.tensor([0.3, -0.2, 0.9]))
        coefficients = sae.sparsity.log_l0_coefficient.exp().tolist()
    saes, batch = independent_saes(sae), batch.to(sae.dtype)
    output = sae.training_forward_pass(step_input(batch, logging=True))
    output.loss.backward()
    assert type(output).__name__ == {"dense": "TrainStepOutput", "entries": "LazyStepOutput"}[form]
    theirs = []
    for single, coefficient in zip(saes, coefficients, strict=True):
        theirs.append(single.training_forward_pass(TrainStepInput(batch, {"l0": coefficient}, None, 1, False)))
        theirs[-1].loss.backward()
    tolerance = 1e-4 if sae.cfg.dtype == "float32" else 1e-6
    near: dict[str, Any] = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(output.loss, sum(each.loss for each in theirs), **near)
    torch.testing.assert_close(output.feature_acts, torch.cat([each.feature_acts for each in theirs], dim=1), **near)
    for name, _ in saes[0].named_parameters():
        parts = [getattr(single, name).grad for single in saes]
        joined = torch.stack(parts) if name == "b_dec" else torch.cat(parts, dim=1 if name == "W_enc" else 0)
        grad = getattr(sae, name).grad
        assert grad.abs().max() > 0
        torch.testing.assert_close(grad, joined, **near)
    if sae.cfg.level_activation == "batchtopk":
        for level, (own, single) in enumerate(zip(sae.levels, saes, strict=True)):
            # Theirs begins at 0, ours at the first batch.
            first = float(single.topk_threshold) / single.cfg.topk_threshold_lr
            assert sae.threshold[own].tolist() == pytest.approx([first] * WIDTHS[level], rel=1e-6)
            assert output.metrics[f"level_{level}_l0"] == int(single.cfg.k * len(batch)) / len(batch)
            assert f"level_{level}_l0_coefficient" not in output.metrics


def test_a_batch_that_is_bad_in_another_process_is_not_counted(batch):
    def refuse(_l0):
        raise BadBatchError("bad elsewhere")

    sae = make_sae(hierarchy_similarity="conditional", perturbation_rate=0.0)
    sae.train()
    at_step(sae, 4).whole_batch_l0 = refuse
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    with pytest.raises(BadBatchError):
        sae.training_forward_pass(step_input(batch))
    assert "forest_updater.recent.firing_tokens" in before
    unmoved = {name: tensor for name, tensor in sae.state_dict().items() if name not in dict(sae.named_parameters())}
    assert all(torch.equal(tensor, before[name]) for name, tensor in unmoved.items())


def test_a_structural_loss_on_one_step_in_three_has_the_gradient_of_three(batch):
    grads = []
    for every in (1, 3):
        sae = make_sae(dtype="float64", structural_loss_coefficient=0.3, structural_loss_every=every)
        sae.train()
        losses = [sae.training_forward_pass(step_input(batch.double(), logging=step == 1)) for step in range(3)]
        torch.stack([output.loss for output in losses]).sum().backward()
        grads.append([parameter.grad for parameter in sae.parameters()])
        logged = ["structural_loss" in output.losses for output in losses]
        # Where it is logged it is the loss itself, whether or not it is due.
        torch.testing.assert_close(losses[0].losses["structural_loss"], losses[1].losses["structural_loss"])
        assert logged == ([True] * 3 if every == 1 else [True, True, False])
        assert "structural_loss" in sae.eval().training_forward_pass(step_input(batch.double())).losses
    for whole, part in zip(*grads, strict=True):
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_all_losses_together_equal_the_formula(batch, apply_b_dec_to_input):
    sae = make_sae(
        dtype="float64",
        apply_b_dec_to_input=apply_b_dec_to_input,
        structural_loss_coefficient=0.3,
        perturbation_rate=0.5,
        perturbation_seed=5,
        hierarchy_first_update=1000,
    )
    batch = batch[:4].double()
    sae.train()
    output = at_step(sae, 3).training_forward_pass(step_input(batch))
    params = [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    smooth = output.losses["mse_loss"] + output.losses["structural_loss"]
    got = torch.autograd.grad(smooth, params)

    parents = sae.parents.tolist()
    slices = [(own.start, own.stop) for own in sae.levels]
    replaced = set(torch.nonzero(draw_replaced(sae.parents, 0.5, 5, 3)).squeeze(1).tolist())
    assert replaced
    pre = reference.pre_activations(batch, sae.W_enc, sae.b_enc, sae.b_dec, slices, apply_b_dec_to_input)
    # The straight-through estimator is SAELens'; its part of the gradient is covered against SAELens' own classes.
    window = ((pre - sae.threshold).abs() < 0.5 * sae.cfg.jumprelu_bandwidth).to(pre.dtype)
    surrogate = reference.jumprelu_acts(pre, sae.threshold) + sae.threshold.detach() * window * (pre - pre.detach())
    mse = sum(
        (reference.reconstruction(surrogate, sae.W_dec, sae.b_dec, parents, slices, level, replaced) - batch)
        .square()
        .sum(-1)
        .mean()
        for level in range(3)
    )
    structural = 0.3 * reference.structural_loss(surrogate, sae.W_dec, parents)
    torch.testing.assert_close(output.losses["mse_loss"], mse)
    torch.testing.assert_close(output.losses["structural_loss"], structural)
    for ours, theirs in zip(got, torch.autograd.grad(mse + structural, params), strict=True):
        torch.testing.assert_close(ours, theirs)
    fired = (pre > sae.threshold).double()
    l0 = torch.stack([fired[:, start:stop].sum(-1).mean() for start, stop in slices])
    assert output.losses["l0_loss"].item() == pytest.approx(l0.sum().item(), rel=1e-6)  # λ is 1 before the first step
    assert output.loss.item() == pytest.approx(sum(loss.item() for loss in output.losses.values()))


def test_dead_features_of_every_level_receive_ghost_gradients(batch):
    sae = make_sae(structural_loss_coefficient=0.0)
    dead = torch.zeros(sum(WIDTHS), dtype=torch.bool)
    dead[[1, 6, 30]] = True
    output = sae.training_forward_pass(step_input(batch, dead=dead))
    grad = torch.autograd.grad(output.losses["ghost_gradient_loss"], sae.W_enc)[0]
    assert torch.equal(grad.abs().sum(0) > 0, dead)
    nothing_dead = make_sae().training_forward_pass(step_input(batch, dead=torch.zeros_like(dead)))
    assert nothing_dead.losses["ghost_gradient_loss"] == 0
    off = make_sae(dead_feature_loss="none")
    assert "ghost_gradient_loss" not in off.training_forward_pass(step_input(batch, dead=dead)).losses


def acts_of_silent(pre: torch.Tensor, ordinary: list[int], n_active: int) -> torch.Tensor:
    """Of one silent feature on a batch, (batch,), from the formula."""
    ranked = sorted(ordinary, key=lambda token: -pre[token].item())
    q = pre[ranked[n_active]].item()
    acts = torch.zeros_like(pre)
    for token in ranked[:n_active]:
        acts[token] = pre[token] - min(0.0, q)
    return acts


def test_silent_features_reconstruct_the_residual(batch):
    sae = make_sae(perturbation_rate=0.0, dead_feature_loss="auxiliary", dtype="float64", target_l0=[1.0, 3.0, 4.0])
    batch = batch.double()
    silent = torch.zeros(sum(WIDTHS), dtype=torch.bool)
    silent[[1, 6, 30, 31]] = True
    sae.silent_features.tokens_since_fired[silent] = 10_000
    sae.b_enc.data[[6, 30]] = -20.0  # below 0 on every token
    output = sae.training_forward_pass(step_input(batch))
    expected = torch.zeros((), dtype=torch.float64)
    for level, features in enumerate(([1], [6], [30, 31])):
        own, n_active = sae.levels.slices[level], round((0.25, 1 / 3, 0.2)[level] * len(batch))
        pre = sae.hidden_pre(batch)
        acts = torch.where(pre > sae.threshold, pre, 0.0)
        error = batch - acts[:, own] @ sae.W_dec[own] - sae.b_dec[level]
        of_silent = [acts_of_silent(pre[:, feature], list(range(len(batch))), n_active) for feature in features]
        again = torch.stack(of_silent, dim=1) @ sae.W_dec[features]
        expected = expected + (again - error.detach()).square().sum(1).mean()
    torch.testing.assert_close(output.losses["auxiliary_loss"], expected)
    grads = torch.autograd.grad(output.losses["auxiliary_loss"], (sae.W_dec, sae.W_enc, sae.b_enc))
    for grad, dims in zip(grads, (1, 0, ()), strict=True):
        assert torch.equal((grad.abs().sum(dims) if dims != () else grad.abs()) > 0, silent)
    assert (sae.silent_features.tokens_since_fired[silent] >= 0).all()


@one_form
@pytest.mark.parametrize("fixed_shapes", [True, False])
def test_silent_features_of_all_levels_are_taken_out_of_a_matrix_at_once(batch, fixed_shapes):
    sae = make_sae(dead_feature_loss="auxiliary")
    sae.silent_features.tokens_since_fired[[1, 6, 30, 31]] = 10_000
    errors = torch.stack([batch] * len(WIDTHS))
    encoder = Encoder(sae.W_enc, sae.b_enc, None)
    losses = sae.silent_features.losses(errors, batch, encoder, sae.W_dec, None, None, fixed_shapes=fixed_shapes)

    class WholeMatrices(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            is_whole = isinstance(made, torch.Tensor) and made.shape in (sae.W_enc.shape, sae.W_dec.shape)
            self.made += is_whole and func in (torch.ops.aten.new_zeros.default, torch.ops.aten.zeros.default)
            return made

    with WholeMatrices() as counted:
        torch.autograd.grad(losses["auxiliary_loss"], (sae.W_enc, sae.W_dec))
    assert counted.made == 2  # the two gradients


@one_form
@pytest.mark.parametrize("n_outlying", [0, 3, 9])
def test_silent_features_are_active_on_ordinary_tokens(n_outlying):
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(10, 7, generator=generator, dtype=torch.float64) - 2
    rows = torch.randn(7, D_IN, generator=generator, dtype=torch.float64)
    error = torch.randn(10, D_IN, generator=generator, dtype=torch.float64)
    weights = torch.ones(10, dtype=torch.float64)
    weights[:n_outlying] = 0.01
    pre[:n_outlying] += 1000
    again = torch.zeros_like(error)
    if n_outlying < 9:  # else there is no other token to compare with
        ordinary = list(range(n_outlying, 10))
        again = torch.stack([acts_of_silent(each, ordinary, 2) for each in pre.T], dim=1) @ rows
    expected = (weights * (again - error).square().sum(1)).mean()
    found = auxiliary_loss(error, pre, rows, weights, torch.ones(7, dtype=torch.bool), 0.2)
    torch.testing.assert_close(found, expected)


def test_a_silent_feature_below_0_on_every_token_fires_again(batch):
    sae = make_sae(dead_feature_loss="auxiliary", structural_loss_coefficient=0.0, jumprelu_init_threshold=0.1)
    sae.b_enc.data[[6, 30]] -= sae.hidden_pre(batch).max(0).values[[6, 30]] + 1.0
    sae.silent_features.tokens_since_fired[[6, 30]] = 10_000
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.05)
    fired = (sae.encode(batch) != 0).any(0)
    assert not fired[[6, 30]].any()
    for _ in range(200):
        optimizer.zero_grad()
        sae.training_forward_pass(step_input(batch)).loss.backward()
        optimizer.step()
        fired |= (sae.encode(batch) != 0).any(0)
    assert fired[[6, 30]].all()


def test_a_feature_is_silent_after_64_mean_intervals(batch):
    sae = make_sae(dead_feature_loss="auxiliary", target_l0=[1.0, 3.0, 2.0])
    sae.silent_features.tokens_since_fired.copy_(
        torch.tensor([256, 257, 0, 0] + [192, 193] + 7 * [0] + [640, 641] + 18 * [0])
    )
    assert sae.silent_features.silent().nonzero().flatten().tolist() == [1, 5, 14]
    sae.threshold.data[::3] = 100.0
    sae.training_forward_pass(step_input(batch))
    fired = (sae.encode(batch) != 0).any(0)
    assert fired.any()
    assert not fired.all()
    assert (sae.silent_features.tokens_since_fired[fired] == 0).all()
    assert (sae.silent_features.tokens_since_fired[~fired] >= len(batch)).all()


def test_nothing_is_perturbed_outside_training(batch):
    sae = make_sae(perturbation_rate=1.0, structural_loss_coefficient=0.0)
    sae.train()
    before = sae.encode(batch), sae(batch)
    perturbed = sae.training_forward_pass(step_input(batch)).losses["mse_loss"]
    sae.eval()
    state = {name: tensor.clone() for name, tensor in tensors_of(sae).items()}
    clean = sae.training_forward_pass(step_input(batch)).losses["mse_loss"]
    for name in ("n_steps", "log_l0_coefficient", "l0_ema", "parents"):
        assert torch.equal(tensors_of(sae)[name], state[name]), "what training steers does not move in eval()"
    assert torch.equal(sae.encode(batch), before[0])
    torch.testing.assert_close(sae(batch), before[1])
    expected = sum((sae.decode_level(before[0], level) - batch).square().sum(-1).mean() for level in range(3))
    torch.testing.assert_close(clean, expected)
    assert (perturbed - clean).abs() > 1e-3


def test_sae_out_is_the_unperturbed_output_level(batch):
    for fields, level in (({}, 2), *(({"output_level": level}, level) for level in range(3))):
        sae = make_sae(perturbation_rate=1.0, **fields)
        output = sae.training_forward_pass(step_input(batch))
        torch.testing.assert_close(output.sae_out, sae(batch))
        torch.testing.assert_close(output.sae_out, sae.decode_level(output.feature_acts, level))


@one_form
def test_activations_of_the_wrong_width_are_refused_before_anything_changes(batch):
    sae = at_step(make_sae(hierarchy_first_update=3), 3)
    sae.W_dec.data.mul_(2)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    for call in (sae.encode, sae, lambda x: sae.training_forward_pass(step_input(x))):
        with pytest.raises(ValueError, match=r"are 7 wide, but d_in=8"):
            call(batch[:, :7])
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


@one_form
@pytest.mark.parametrize("mode", ["autocast", "bfloat16"])
def test_a_large_mean_costs_no_more_precision_than_in_independent_saes(mode):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(D_IN, generator=generator) * 50
    x = mean + torch.randn(256, D_IN, generator=generator)
    exact = make_sae(dtype="float64")
    exact.b_dec.data.copy_(mean + 0.1 * exact.b_dec.data)
    exact.W_enc.data.add_(mean[:, None].double() / 100)
    rounded = make_sae()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(rounded, name).data.copy_(getattr(exact, name).data)
    if mode == "bfloat16":
        rounded = rounded.to(dtype=torch.bfloat16)
    saes = independent_saes(rounded)
    truth = exact.hidden_pre(exact.process_sae_in(x))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        ours = rounded.encode_with_hidden_pre(x)[1]
        theirs = torch.cat([single.encode_with_hidden_pre(x)[1] for single in saes], dim=1)
    our_error, their_error = ((pre.double() - truth).square().mean().sqrt() for pre in (ours, theirs))
    assert our_error < 1.5 * their_error


@one_form
def test_parameters_are_constrained_before_each_step(batch):
    sae = make_sae()
    sae.W_dec.data.mul_(3)
    sae.threshold.data[5] = -1
    sae.training_forward_pass(step_input(batch))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(33))
    assert sae.threshold.min() == 0


def test_metrics_are_those_of_the_levels(batch):
    sae = make_sae(hierarchy_first_update=1000)
    dead = torch.arange(33) < 5
    output = sae.training_forward_pass(step_input(batch, dead=dead, logging=True))
    metrics = {name: _unwrap_item(value) for name, value in output.metrics.items()}
    fired = (output.feature_acts > 0).float()
    variance = (batch - batch.mean(0)).square().sum(-1).mean()
    for level, own in enumerate(sae.levels):
        error = (sae.decode_level(output.feature_acts, level) - batch).square().sum(-1).mean()
        assert metrics[f"level_{level}_l0"] == pytest.approx(fired[:, own].sum(-1).mean().item())
        assert metrics[f"level_{level}_explained_variance"] == pytest.approx(1 - (error / variance).item(), abs=1e-5)
        assert metrics[f"level_{level}_dead_features"] == [4, 1, 0][level]
    assert metrics["level_2_unassigned_share"] == pytest.approx((sae.parents[13:] < 0).float().mean().item())
    assert "level_0_unassigned_share" not in metrics
    assert sae.training_forward_pass(step_input(batch)).metrics == {}


@pytest.mark.parametrize("similarity", ["encoder", "coactivation", "conditional"])
def test_half_precision_keeps_thresholds_and_controller_in_float32(batch, similarity):
    sae = make_sae(dtype="bfloat16", hierarchy_similarity=similarity)
    output = sae.training_forward_pass(step_input(batch))
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    before = {name: sae.state_dict()[name].clone() for name in set(sae.state_dict()) - set(CAST_TENSORS)}
    moved = sae.to(dtype=torch.float16).to(dtype=torch.bfloat16)
    assert all(torch.equal(sae.state_dict()[name], tensor) for name, tensor in before.items())
    for name in ("threshold", "log_l0_coefficient", "l0_ema"):
        assert tensors_of(moved)[name].dtype == torch.float32
    moved.training_forward_pass(step_input(batch)).loss.backward()


def test_a_copy_has_the_families_of_its_own_forest(batch):
    sae = make_sae(perturbation_rate=0.0)
    sae.training_forward_pass(step_input(batch))
    twin = copy.deepcopy(sae)
    with torch.no_grad():
        twin.W_enc.copy_(torch.randn_like(twin.W_enc))
    for _ in range(2):
        twin.update_hierarchy()
        acts = twin.encode(batch).double()
        got = twin.training_forward_pass(step_input(batch)).losses["structural_loss"]
        want = 0.01 * reference.structural_loss(acts, twin.W_dec.double(), twin.parents.tolist())
        assert got.item() == pytest.approx(want.item(), rel=1e-4)


@one_form
def test_compilation_settles_whatever_the_forest_the_draw_and_the_dead_features(batch):
    torch._dynamo.reset()
    sae = make_sae(hierarchy_first_update=1, hierarchy_update_every=5, perturbation_rate=0.1)
    plain = copy.deepcopy(sae)
    compiled = torch.compile(sae.training_forward_pass, backend="eager")
    generator = torch.Generator().manual_seed(0)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for _ in range(40):
            dead = torch.rand(33, generator=generator) < 0.1
            x = batch + 0.1 * torch.randn(batch.shape, generator=generator)
            losses = [forward(step_input(x, dead=dead)).loss for forward in (compiled, plain.training_forward_pass)]
            torch.testing.assert_close(losses[0], losses[1])
            losses[0].backward()


def test_what_fires_on_outlying_tokens_is_not_counted(batch):
    sae = make_sae(outlier_limit=2.0, hierarchy_similarity="conditional", hierarchy_first_update=1000)
    batch[::7] *= 20
    sae.standardization.observe(batch, 0)
    sae.standardization.begin(sae.b_dec.data)
    sae.threshold.data[::4] = 8.0
    sae.silent_features.tokens_since_fired.fill_(500)
    output = at_step(sae, 20).training_forward_pass(step_input(batch))
    weights, recent = sae.standardization.token_weights(sae.standardization.scaled(batch)), sae.forest_updater.recent
    assert weights is not None
    assert recent is not None
    fires, ordinary = output.feature_acts > 0, weights >= 1
    assert (fires[~ordinary].any(0) & ~fires[ordinary].any(0)).any(), "some fire there alone"
    (counted,) = recent.unpacked()
    assert counted.times.tolist() == fires[ordinary].sum(0).tolist()
    silent_for = torch.where(fires[ordinary].any(0), 0, 500 + len(batch))
    assert sae.silent_features.tokens_since_fired.equal(silent_for)
