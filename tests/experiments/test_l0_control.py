"""How close L0 stays to its target while training: recorded after every step, and told by its last third."""

import torch

from experiments.l0_control import recorded, reproduce_l0, row
from experiments.models import HSAE, new_sae, train
from experiments.paper_tables import Size
from sae_lens_hsae import HierarchicalTrainingSAE

D_IN, STEPS = 24, 20


def activations(layer, n_tokens):  # noqa: ARG001 – a source is asked for a layer
    x = torch.randn(n_tokens, D_IN, generator=torch.Generator().manual_seed(1))
    return x * D_IN**0.5 / x.norm(dim=1).mean()


def test_every_step_is_recorded_and_training_is_as_without():
    x = activations(3, 2048)
    watched, alone = _new(), _new()
    seen = recorded(watched, lambda: train(watched, x, STEPS, 0))
    train(alone, x, STEPS, 0)
    assert torch.equal(watched.W_enc, alone.W_enc)
    assert seen[-1] == alone.sparsity.l0_ema.tolist()
    assert len(seen) == STEPS - 16, "the first steps only observe"


def _new() -> HierarchicalTrainingSAE:
    torch.manual_seed(0)
    sae = new_sae(HSAE, 3, D_IN)
    assert isinstance(sae, HierarchicalTrainingSAE)
    return sae


def test_a_row_tells_of_the_last_third_alone():
    l0 = [[9.0, 90.0]] * 6 + [[1.1, 10.0], [1.0, 8.0], [0.95, 10.0]]
    told = row("layer 3", [1.0, 10.0], l0)
    assert told["off at the end"] == "5.0% 0.0%"
    assert told["farthest off in the last third"] == "10.0% 20.0%"


def test_the_table_has_a_row_for_each_place_and_keeps_them(tmp_path, monkeypatch):
    size = Size(steps=STEPS, held_out=500, places=1)
    rows = reproduce_l0("gemma", activations, tmp_path, size)
    assert [each["activations"] for each in rows] == ["layer 9"]
    assert rows[0]["target"].split()[-1] == "16.00"
    monkeypatch.setattr("experiments.l0_control.on_stream", None)
    assert reproduce_l0("gemma", activations, tmp_path, size) == rows
