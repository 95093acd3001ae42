"""SAEs trained in HSAE's coordinates read activations as they are, and reconstruct as they did."""

import pytest
import torch

from experiments.centred import Coordinates
from experiments.models import new_batch_topk, new_sae
from experiments.saelens_jumprelu import new_jumprelu


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    x = 30 + torch.randn(500, 16, generator=generator)
    x[:5] *= 100
    return x


def test_ordinary_tokens_lie_around_the_origin_at_root_d(x):
    z = Coordinates.of(x).into(x)
    assert z[5:].mean(0).norm() < 0.01
    assert z.norm(dim=1).median() == pytest.approx(4)


@pytest.mark.parametrize(
    "new",
    [
        lambda: new_batch_topk("SAELens BatchTopK", 16, 16)[0],
        lambda: new_jumprelu(40, 8, 16),
        lambda: new_sae("post hoc", 16, 16),
    ],
)
def test_folding_changes_where_an_sae_reads_and_not_what_it_says(new, x):
    sae = new()
    with torch.no_grad():
        sae.b_dec += 0.1 * torch.randn(sae.b_dec.shape, generator=torch.Generator().manual_seed(1))
    coordinates = Coordinates.of(x)
    before = sae(coordinates.into(x)) / coordinates.factor + coordinates.centre
    coordinates.fold(sae)
    assert torch.allclose(sae(x), before, atol=1e-3, rtol=1e-5)
