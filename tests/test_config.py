"""Every bad field is refused at once, with its name, its value and a remedy."""

import json

import pytest
from small_saes import make_config

from sae_lens_hsae import HierarchicalSAEConfig, HierarchicalTrainingSAEConfig

NAN = float("nan")
TOO_LARGE = 10**400
"""A whole number that JSON can hold and no float."""


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("level_widths", [], "is empty; give the levels coarse to fine"),
        ("level_widths", [8, 8], "not strictly increasing"),
        ("d_in", "8", "it is the width"),
        ("device", "/dev/zero", "give the name of one"),
        ("d_sae", 34, "level_widths=[4, 9, 20] add up to 33, so set d_sae=33"),
        ("output_level", 3, "choose a level from -3 to 2"),
        ("normalize_activations", "layer_norm", 'use "none" or "expected_average_only_in"'),
        ("target_l0", 0, "level 0 has 4 features, so its target must be above 0 and at most 4"),
        ("target_l0", TOO_LARGE, "give one number, or one per level"),
        ("l0_width_exponent", 1.5, "from 0, L0 as high everywhere, to 1"),
        ("target_l0", [2, 2, 21], "level 2 has 20 features, so its target must be above 0 and at most 20"),
        ("target_l0", [2, 2, 2, 2], "one per level: there are 3 levels"),
        ("target_l0", [2, NAN, 2], "level 1"),
        ("structural_loss_coefficient", NAN, "ρ must be 0 or more"),
        ("perturbation_rate", 1.5, "from 0 to 1"),
        ("unassigned_fraction", 1.0, "at least 0 and below 1"),
        ("hierarchy_similarity", "cosine", "choose one of 'encoder', 'decoder', 'coactivation', 'conditional'"),
        ("level_activation", "topk", "choose one of 'jumprelu', 'batchtopk'"),
        ("structural_loss_every", 0, "1 or more"),
        ("hierarchy_update_every", 2.5, "1 or more"),
        ("hierarchy_first_update", 0, "1 or more"),
        ("max_children", 0, "1 or more, or None"),
        ("freeze_hierarchy_after", -1, "a step, 1 or more, or None"),
        ("freeze_hierarchy_after", 99, "the first forest is made at step 100"),
        ("output_level", True, "choose a level from -3 to 2"),
        ("jumprelu_bandwidth", 0.0, "above 0"),
        ("jumprelu_init_threshold", -1.0, "θ must be 0 or more"),
        ("sparsity_rate", 0.0, "above 0"),
        ("outlier_limit", 0, "a multiple of the median distance: 1 or more, or None"),
        ("sparsity_gain", -1.0, "above 0"),
        ("l0_ema_momentum", 1.0, "below 1"),
        ("decoder_init_norm", 10**30, "above 0, or None; below 2^63"),
        ("sparsity_gain", TOO_LARGE, "above 0, and below 2^63"),
    ],
    ids=lambda value: "too large" if value == TOO_LARGE else None,
)
def test_bad_fields_are_refused_with_field_value_and_remedy(field, value, remedy):
    with pytest.raises(ValueError) as error:  # noqa: PT011 – the text is checked below
        make_config(**{"d_sae": 33, field: value})
    message = str(error.value)
    assert field in message
    assert str(value) in message
    assert remedy in message


@pytest.mark.parametrize("field", ["level_widths", "output_level", "d_sae"])
def test_the_inference_config_checks_its_fields_too(field):
    value = {"level_widths": [9, 4], "output_level": 2, "d_sae": 12}[field]
    with pytest.raises(ValueError, match=field):
        HierarchicalSAEConfig(**{"d_in": 8, "d_sae": 13, "level_widths": [4, 9], field: value})


def test_limits_are_allowed():
    make_config(target_l0=[4, 9, 20], structural_loss_coefficient=0, perturbation_rate=1, unassigned_fraction=0)
    make_config(level_widths=[5], output_level=-1, max_children=1, freeze_hierarchy_after=100)


def test_the_config_of_an_inference_model_is_no_training_config():
    saved = make_config().get_inference_sae_cfg_dict()
    with pytest.raises(ValueError, match=r"target_l0 is missing: .* give a checkpoint instead"):
        HierarchicalTrainingSAEConfig.from_dict(saved)


def test_one_target_is_that_of_the_finest_level_and_others_follow_their_width():
    assert make_config(target_l0=3, l0_width_exponent=0).target_l0_per_level == (3.0, 3.0, 3.0)
    assert make_config(target_l0=3, l0_width_exponent=1).target_l0_per_level == pytest.approx((0.6, 1.35, 3.0))
    expected = [2 * (width / 20) ** (1 / 3) for width in (4, 9, 20)]
    assert make_config(target_l0=2, l0_width_exponent=1 / 3).target_l0_per_level == pytest.approx(expected)
    assert make_config(target_l0=[1, 2, 3]).target_l0_per_level == (1.0, 2.0, 3.0)


def test_a_training_config_survives_json():
    cfg = make_config(target_l0=[1, 2, 3], max_children=2, hierarchy_similarity="decoder")
    again = HierarchicalTrainingSAEConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert again == cfg


def test_the_inference_config_keeps_only_its_own_fields():
    saved = make_config(output_level=1).get_inference_sae_cfg_dict()
    cfg = HierarchicalSAEConfig.from_dict(saved)
    assert (cfg.level_widths, cfg.output_level, cfg.d_sae) == ([4, 9, 20], 1, 33)
    assert saved["metadata"]["training_architecture_details"]["structural_loss_coefficient"] == 0.01


@pytest.mark.parametrize(
    ("limit", "first", "similarity", "due"),
    [
        (3.0, 10, "encoder", 20),
        (3.0, 12, "encoder", 24),
        (3.0, 16, "encoder", 16),
        (3.0, 16, "conditional", 32),
        (None, 5, "encoder", 5),  # no steps that only observe
    ],
)
def test_a_forest_that_is_frozen_before_one_can_be_made_is_refused(limit, first, similarity, due):
    fields = {"outlier_limit": limit, "hierarchy_first_update": first, "hierarchy_similarity": similarity}
    make_config(d_sae=33, freeze_hierarchy_after=due, **fields)
    with pytest.raises(ValueError, match=f"is made at step {due}"):
        make_config(d_sae=33, freeze_hierarchy_after=due - 1, **fields)
