"""The inference SAE: saving, loading, folding, and its levels as plain SAELens SAEs."""

import copy

import pytest
import torch
from sae_lens import SAE, JumpReLUSAE
from sae_lens.saes.sae import TrainingSAE
from safetensors.torch import load_file, save_file
from small_saes import D_IN, WIDTHS, at_step, make_sae, step_input, tensors_of

from sae_lens_hsae import HierarchicalSAE, HierarchicalSAEConfig, HierarchicalTrainingSAE
from sae_lens_hsae.sae.inference import CAST_TENSORS
from sae_lens_hsae.storage.exact_storage import as_bytes

DTYPES = ["float32", "float16", "bfloat16"]


def saved(sae, path):
    sae.save_inference_model(path)
    return path


@pytest.mark.parametrize(
    ("trained_in", "loaded_in"), [*(("float32", dtype) for dtype in DTYPES), *((dtype, None) for dtype in DTYPES)]
)
def test_a_saved_model_loads_as_it_was_trained(tmp_path, batch, trained_in, loaded_in):
    sae = make_sae(dtype=trained_in)
    loaded = SAE.load_from_disk(saved(sae, tmp_path), dtype=loaded_in)
    assert type(loaded) is HierarchicalSAE
    assert str(loaded.W_dec.dtype) == str(loaded.threshold.dtype) == f"torch.{loaded_in or trained_in}"
    sae = sae.to(dtype=loaded.dtype)
    assert torch.equal(loaded.parents, sae.parents)
    assert torch.equal(loaded.encode(batch), sae.encode(batch))
    assert torch.equal(loaded(batch), sae(batch))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saved_as", ["float32", "bfloat16"])
def test_parents_beyond_any_half_precision_number_survive(tmp_path, saved_as, dtype):
    widths = [70_000, 70_001]
    sae = HierarchicalSAE(HierarchicalSAEConfig(d_in=1, d_sae=sum(widths), level_widths=widths, dtype=saved_as))
    sae.parents[widths[0] :] = torch.arange(widths[1]).clamp(max=widths[0] - 1)
    sae.save_model(tmp_path)
    loaded = HierarchicalSAE.load_from_disk(tmp_path, dtype=dtype)
    assert loaded.parents.dtype == torch.int64
    assert torch.equal(loaded.forest.parents, sae.parents)


def test_saving_ends_training_unit_decoder_and_a_forest_of_the_saved_weights(tmp_path):
    sae = make_sae()
    sae.W_dec.data.mul_(1.01)
    sae.parents.fill_(-1)
    loaded = HierarchicalSAE.load_from_disk(saved(sae, tmp_path))
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(33))
    fresh = copy.deepcopy(sae)
    fresh.update_hierarchy()
    assert torch.equal(loaded.forest.parents, fresh.parents)
    assert len(loaded.forest.edges())


def test_a_checkpoint_holds_all_that_training_needs_and_changes_nothing(tmp_path, batch):
    sae = make_sae(hierarchy_similarity="coactivation", hierarchy_first_update=1)
    at_step(sae, 1).training_forward_pass(step_input(batch))
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.save_model(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
    again = make_sae(seed=1, hierarchy_similarity="coactivation", hierarchy_first_update=1)
    again.load_weights_from_checkpoint(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())
    from_disk = TrainingSAE.load_from_disk(tmp_path)
    assert isinstance(from_disk, HierarchicalTrainingSAE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in from_disk.state_dict().items())
    rounded = TrainingSAE.load_from_disk(tmp_path, dtype="bfloat16")
    assert all(torch.equal(rounded.state_dict()[name], before[name]) for name in set(before) - set(CAST_TENSORS))


NAMES_OF_A_CHECKPOINT = {
    "W_enc", "b_enc", "W_dec", "b_dec", "threshold_bytes", "parents_bytes", "n_steps_bytes", "reparented_share_bytes",
    "l0_ema_bytes", "log_l0_coefficient_bytes", "tokens_since_fired_bytes", "firing_steps_bytes",
    "firing_sizes_bytes", "firing_times_bytes", "firing_tokens_bytes", "input_scale_bytes", "input_mean_bytes",
    "moments_centre_bytes", "moments_distance_bytes", "moments_weight_bytes", "moments_first_bytes",
}  # fmt: skip


def test_a_checkpoint_names_its_tensors_without_the_parts_that_keep_them(tmp_path, batch):
    fields = {"outlier_limit": 3.0, "hierarchy_similarity": "conditional"}
    sae = make_sae(**fields)
    sae.training_forward_pass(step_input(batch))
    weights, _ = sae.save_model(tmp_path)
    stored = load_file(weights)
    assert set(stored) == NAMES_OF_A_CHECKPOINT
    for state in (stored, tensors_of(sae)):  # from a file, and as plain tensors
        again = make_sae(seed=1, **fields)
        of_again = dict(state)
        again.process_state_dict_for_loading(of_again)
        again.load_state_dict(of_again)
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in sae.state_dict().items())
        assert again.forest_updater.steps_taken() == 1


@pytest.mark.parametrize("level", range(-3, 3))
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_a_level_is_a_plain_saelens_sae_with_the_same_outputs(batch, level, apply_b_dec_to_input):
    sae = make_sae(apply_b_dec_to_input=apply_b_dec_to_input)
    sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    sae.cfg.metadata.l0 = 6.0
    random_state = torch.get_rng_state()
    single = sae.level_sae(level)
    assert torch.equal(random_state, torch.get_rng_state())
    acts = sae.encode(batch)
    assert type(single) is JumpReLUSAE
    torch.testing.assert_close(single.encode(batch), acts[:, sae.levels[level]])
    torch.testing.assert_close(single(batch), sae.decode_level(acts, level % 3))
    torch.testing.assert_close(single.W_dec.norm(dim=1), torch.ones(WIDTHS[level]))
    assert single.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert single.cfg.metadata.hsae_level == level % 3
    assert single.cfg.metadata.l0 is None, "the stack's L0 is not the level's"
    single.b_enc.data.fill_(0)
    assert sae.b_enc.abs().max() > 0, "a level must not share memory with the stack"


def test_a_level_has_a_unit_decoder_even_where_the_stack_has_not(batch):
    sae = make_sae()
    sae.W_dec.data.mul_(torch.linspace(0.5, 2, 33)[:, None])
    single = sae.level_sae(1)
    torch.testing.assert_close(single.W_dec.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(single(batch), sae.decode_level(sae.encode(batch), 1))


@pytest.mark.parametrize("level", [3, -4])
def test_a_level_that_does_not_exist(level):
    with pytest.raises(IndexError, match=f"level {level} does not exist; choose one from 0 to 2"):
        make_sae().level_sae(level)
    with pytest.raises(IndexError, match=f"level {level} does not exist; choose one from 0 to 2"):
        make_sae().decode_level(torch.zeros(2, 33), level)
    sae = make_sae()
    sae.cfg.output_level = level
    with pytest.raises(IndexError, match=f"level {level} does not exist; choose one from 0 to 2"):
        sae.decode(torch.zeros(2, 33))


def test_activations_of_a_single_level_are_not_taken_for_those_of_all(batch):
    sae = make_sae()
    acts = sae.level_sae(-1).encode(batch)
    for decode in (sae.decode, lambda acts: sae.decode_level(acts, 0)):
        with pytest.raises(ValueError, match=r"feature_acts of shape .* 20 wide, but d_sae=33; .* level_sae"):
            decode(acts)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_folding_the_activation_scale_changes_no_output_and_no_forest(batch, apply_b_dec_to_input):
    sae = make_sae(apply_b_dec_to_input=apply_b_dec_to_input, normalize_activations="expected_average_only_in")
    sae.update_hierarchy()
    scale = 1.7
    expected, acts, forest = sae(batch * scale) / scale, sae.encode(batch * scale), sae.forest
    sae.fold_activation_norm_scaling_factor(scale)
    torch.testing.assert_close(sae(batch), expected)
    torch.testing.assert_close(sae.encode(batch) * scale, acts)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(33))
    sae.update_hierarchy()
    assert sae.forest == forest
    assert sae.cfg.normalize_activations == "none"


def test_folding_the_decoder_norm_changes_no_output_and_no_forest(batch, tmp_path):
    sae = SAE.load_from_disk(saved(make_sae(), tmp_path))
    sae.W_dec.data.mul_(torch.linspace(0.5, 2, 33)[:, None])
    expected, forest = sae(batch), sae.forest
    sae.fold_W_dec_norm()
    torch.testing.assert_close(sae(batch), expected)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(33))
    assert sae.forest == forest


def test_tokens_of_any_batch_shape(batch):
    sae = make_sae()
    torch.testing.assert_close(sae(batch.view(2, 8, D_IN)).view(16, D_IN), sae(batch))


@pytest.mark.parametrize("similarity", ["encoder", "coactivation", "conditional"])
def test_a_checkpoint_loads_for_inference_too(tmp_path, batch, similarity):
    sae = make_sae(hierarchy_similarity=similarity)
    sae.training_forward_pass(step_input(batch))
    sae.save_model(tmp_path)
    loaded = HierarchicalSAE.load_from_disk(tmp_path)
    assert loaded.forest == sae.forest
    assert torch.equal(loaded(batch), sae(batch))
    half = TrainingSAE.load_from_disk(tmp_path, dtype="bfloat16")
    half.training_forward_pass(step_input(batch)).loss.backward()


def test_nothing_is_perturbed_after_loading(tmp_path, batch):
    loaded = SAE.load_from_disk(saved(make_sae(perturbation_rate=1.0), tmp_path)).train()
    assert torch.equal(loaded(batch), loaded(batch))
    torch.testing.assert_close(loaded(batch), loaded.decode(loaded.encode(batch)))


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf"), -1.0])
def test_a_scale_that_cannot_be_is_refused_and_changes_nothing(factor):
    sae = make_sae()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    with pytest.raises(ValueError, match=f"scaling_factor={factor} is not a positive number"):
        sae.fold_activation_norm_scaling_factor(factor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"parents_bytes": as_bytes(torch.ones(33, dtype=torch.int64))}, "parents"),  # one too high
        (lambda tensors: {"parents_bytes": tensors["parents_bytes"][:-1]}, "parents"),
        (lambda tensors: {"parents_bytes": tensors["parents_bytes"].float() + 0.5}, "damaged"),
        (lambda _: {"parents_bytes": None}, "no tensor 'parents'"),
        (lambda _: {"b_enc": None}, "no tensor 'b_enc'"),
        (lambda tensors: {"b_dec": tensors["b_dec"][:2]}, r"b_dec has shape \(2, 8\).*need \(3, 8\)"),
        (lambda tensors: {"W_enc": tensors["W_enc"][:, :5].clone()}, "W_enc has shape"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, change, message):
    weights = saved(make_sae(), tmp_path) / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in (tensors | change(tensors)).items() if tensor is not None}, weights)
    with pytest.raises(ValueError, match=message):
        SAE.load_from_disk(tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    sae = make_sae()
    sae.level_sae(2).save_model(tmp_path)
    with pytest.raises(ValueError, match="architecture='jumprelu', but this SAE is 'hsae'"):
        sae.load_weights_from_checkpoint(tmp_path)
