"""`HierarchicalSAE.from_saes`: SAEs that SAELens trained one by one, as the levels of one stack."""

from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from small_saes import D_IN, WIDTHS, make_sae

from sae_lens_hsae import FeatureForest, HierarchicalSAE

FOREST = make_sae().forest
METADATA = {"model_name": "gpt2", "hook_name": "blocks.0.attn.hook_z", "prepend_bos": False, "context_size": 8}


def level(number: int, cls: Any = JumpReLUSAE, cfg_cls: Any = JumpReLUSAEConfig, **fields: Any) -> Any:
    """An SAE as wide as a level of `FOREST`, with random tensors: decoder rows of any norm, thresholds of any sign."""
    metadata = SAEMetadata(**METADATA | fields.pop("metadata", {}))
    sae = cls(cfg_cls(d_in=D_IN, d_sae=WIDTHS[number], metadata=metadata, **fields))
    generator = torch.Generator().manual_seed(number)
    for tensor in sae.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator).to(tensor)
    return sae


def as_loaded(sae: BatchTopKTrainingSAE, folder: Any) -> SAE[Any]:
    sae.topk_threshold.fill_(0.7)
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize("subtract", [(True, True, True), (False, False, False), (True, False, True)])
def test_a_stack_encodes_and_decodes_as_its_saes_do_also_once_saved(tmp_path, batch, subtract):
    first, second, third = ({"apply_b_dec_to_input": each} for each in subtract)
    batch_topk = level(1, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, k=3, **second)
    of_one = {"neuronpedia_id": "gpt2/0-res", "l0": 3.0}
    saes = [
        level(0, StandardSAE, StandardSAEConfig, metadata=of_one, **first),
        as_loaded(batch_topk, tmp_path / "batch_topk"),
        level(2, **third),
    ]
    stack = HierarchicalSAE.from_saes(saes, FOREST)
    stack.save_model(tmp_path / "stack")
    loaded = HierarchicalSAE.load_from_disk(tmp_path / "stack")
    for sae in (stack, loaded):
        acts = sae.encode(batch)
        for number, (own, each) in enumerate(zip(sae.levels, saes, strict=True)):
            expected = each.encode(batch)
            assert 0 < (expected != 0).double().mean() < 1
            torch.testing.assert_close(acts[:, own], expected)
            torch.testing.assert_close(sae.decode_level(acts, number), each.decode(expected))
        assert sae.forest == FOREST
        assert sae.cfg.apply_b_dec_to_input == all(subtract), "half precision keeps its digits"
        assert {name: sae.cfg.metadata[name] for name in METADATA} == METADATA
        assert not of_one.keys() & set(sae.cfg.metadata.keys()), "they are of one SAE"
    saes[2].b_enc.data.fill_(0)
    assert stack.b_enc[-WIDTHS[2] :].abs().max() > 0, "the tensors are copies"


def test_levels_taken_apart_and_put_together_are_the_same_stack():
    sae = make_sae(dtype="bfloat16", normalize_activations="none")
    again = HierarchicalSAE.from_saes([sae.level_sae(number) for number in range(3)], sae.forest)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, getattr(sae, name).to(tensor.dtype)), name
    assert (again.dtype, again.cfg.dtype, again.cfg.device) == (torch.bfloat16, "bfloat16", "cpu")
    assert again.cfg.metadata == sae.cfg.metadata


def test_heads_are_put_together_as_saelens_does(tmp_path, batch):
    saes = [level(number, reshape_activations="hook_z") for number in range(3)]
    with pytest.raises(ValueError, match=r"level 0 has reshape_activations='hook_z' .*turn_off_forward_pass"):
        HierarchicalSAE.from_saes(saes, FOREST)
    for sae in saes:
        sae.turn_off_forward_pass_hook_z_reshaping()
    stack = HierarchicalSAE.from_saes(saes, FOREST)
    torch.testing.assert_close(stack(batch), saes[-1](batch))
    stack.save_model(tmp_path)
    heads = batch.unflatten(-1, (2, D_IN // 2))
    torch.testing.assert_close(SAE.load_from_disk(tmp_path)(heads).flatten(-2), saes[-1](batch))


def with_error_term() -> Any:
    sae = level(1)
    sae._use_error_term = True
    return sae


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda: level(0), r"levels have the widths \[4, 4, 20\], but the forest has level_widths=\[4, 9, 20\]"),
        (lambda: level(1, TopKSAE, TopKSAEConfig, k=3), r"level 1 is a TopKSAE, .*FeatureForest\.from_saes\(\) takes"),
        (
            lambda: level(1, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, k=3),
            r"level 1 is a BatchTopKTrainingSAE, .* what its save_inference_model\(\) writes",
        ),
        (
            lambda: level(1, normalize_activations="expected_average_only_in"),
            "level 1 has normalize_activations='expected_average_only_in', .*fold_activation_norm_scaling_factor",
        ),
        (with_error_term, "level 1 has use_error_term=True"),
        (
            lambda: level(1, metadata={"model_name": "pythia"}),
            "different cfg.metadata.model_name: level 0 'gpt2', level 1 'pythia', level 2 'gpt2'",
        ),
        (lambda: level(1, metadata={"hook_name": "h.1"}), "hook_name: level 0 'blocks.0.attn.hook_z', level 1 'h.1'"),
        (lambda: level(1, dtype="float16"), r"different dtypes .*'torch.float16'.*sae\.to\(dtype="),
        (lambda: level(1, device="meta"), r"different devices \['cpu', 'meta', 'cpu'\]"),
    ],
)
def test_saes_that_make_no_stack(second, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalSAE.from_saes([level(0), second(), level(2)], FOREST)


def test_a_forest_of_other_levels():
    with pytest.raises(ValueError, match=r"widths \[4, 9, 20\], but the forest has level_widths=\[4, 9\]"):
        HierarchicalSAE.from_saes([level(number) for number in range(3)], FeatureForest([-1] * 13, WIDTHS[:2]))
