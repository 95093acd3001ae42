"""Cross-entropy recovered per level, on a tiny model."""

from typing import Any

import pytest
import torch
from host_helpers import CONTEXT, D_MODEL, HOOK, tiny_dataset, tiny_model
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_hsae.evaluation import cross_entropy_recovered


def level(width: int, scale: float, hook: str | None = HOOK) -> JumpReLUSAE:
    """Reconstructs ``scale`` times the activation, in pairs of features of opposite sign."""
    metadata = SAEMetadata(hook_name=hook, model_name="tiny", context_size=CONTEXT, prepend_bos=False)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=width, apply_b_dec_to_input=False, metadata=metadata))
    rows = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    sae.W_enc.data.zero_()
    sae.W_dec.data.zero_()
    sae.W_enc.data[:, : len(rows)] = rows.T
    sae.W_dec.data[: len(rows)] = scale * rows
    return sae


@pytest.fixture
def model() -> Any:
    return tiny_model()


@pytest.fixture
def store(model: Any) -> ActivationsStore:
    return ActivationsStore.from_sae(model, level(32, 1), tiny_dataset(40), store_batch_size_prompts=4)


def test_by_hand(model: Any, store: ActivationsStore):
    tokens = ActivationsStore.from_sae(model, level(32, 1), tiny_dataset(40)).get_batch_tokens(12)
    found = cross_entropy_recovered(
        [level(32, 0), level(40, 0.5), level(48, 1)], model, store, n_batches=3, exclude_special_tokens=False
    )
    expected = []
    with torch.no_grad():
        for scale in (0, 0.5, 1):
            hooks = [(HOOK, lambda x, hook, scale=scale: scale * x)]  # noqa: ARG005
            expected.append(model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks).item())
    ablated, half, without = expected
    assert [record.level for record in found] == [0, 1, 2]
    assert [record.with_level for record in found] == pytest.approx(expected, rel=1e-5)
    # Every level on the same tokens: what does not depend on the level is the same.
    assert {(record.without, record.ablated) for record in found} == {(found[0].without, found[0].ablated)}
    assert (found[0].without, found[0].ablated) == (pytest.approx(without), pytest.approx(ablated))
    assert abs(ablated - without) > 0.01
    assert [record.recovered for record in found] == pytest.approx(
        [0, (ablated - half) / (ablated - without), 1], abs=1e-4
    )


def test_the_stack_gives_its_levels_and_the_store_goes_on(model: Any, store: ActivationsStore):
    levels = [level(32, 0.3), level(40, 0.8)]
    stack: Any = type("Stack", (), {})()
    stack.cfg, stack.level_sae = type("Cfg", (), {"level_widths": [32, 40]})(), levels.__getitem__
    arguments: Any = {"n_batches": 2, "exclude_special_tokens": False}
    first = cross_entropy_recovered(stack, model, store, **arguments)
    second = cross_entropy_recovered(levels, model, store, **arguments)
    assert first[0].without != second[0].without
    again = ActivationsStore.from_sae(model, levels[0], tiny_dataset(40), store_batch_size_prompts=4)
    assert cross_entropy_recovered(levels, model, again, **arguments) == first


def test_what_cannot_be_measured_is_refused(model: Any, store: ActivationsStore):
    def fails(levels: Any, message: str, **arguments: Any) -> None:
        with pytest.raises(ValueError, match=message):
            cross_entropy_recovered(levels, model, store, exclude_special_tokens=False, **arguments)

    fails([level(32, 1, None)], "level 0 has no cfg.metadata.hook_name")
    elsewhere = [level(32, 1), level(40, 1, "blocks.0.hook_resid_pre")]
    fails(elsewhere, "different cfg.metadata.hook_name: level 0 'blocks.0.hook_resid_post'")
    scaled = level(32, 1)
    scaled.cfg.normalize_activations = "expected_average_only_in"
    fails([scaled], "activations times a factor, .*fold_activation_norm_scaling_factor")
    fails([level(32, 1)], "n_batches=0 must be at least 1", n_batches=0)
    for name, parameter in model.named_parameters():
        if "unembed" in name:
            parameter.data.zero_()
    fails([level(32, 1)], "zeros at blocks.0.hook_resid_post do not change", n_batches=1)
