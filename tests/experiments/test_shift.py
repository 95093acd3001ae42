"""A probe that learned the wrong thing, and features whose removal makes it forget that."""

import pytest
import torch
from small_saes import make_sae

from experiments.shift import shift_rows
from sae_lens_hsae.interpret.steering.examples import Texts

D_IN = 48
WIDTHS = [12, 20]


@pytest.fixture(scope="module")
def planted():
    """Coarse feature 0 says how long a text is, direction 5 which topic it has, and length shows ten times as much.

    Finest features 0 and 1 are children of coarse 0 and share its work.
    """
    sae = make_sae(d_in=D_IN, level_widths=WIDTHS)
    axes = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(0))).Q
    decoder = axes[: sum(WIDTHS)].clone()
    decoder[WIDTHS[0]] = decoder[WIDTHS[0] + 1] = decoder[0]
    sae.W_dec.data = decoder
    sae.parents[WIDTHS[0] :] = -1
    sae.parents[[WIDTHS[0], WIDTHS[0] + 1]] = 0
    generator = torch.Generator().manual_seed(1)

    def texts(topic: int | None, length: int) -> Texts:
        acts = torch.rand(200, sum(WIDTHS), generator=generator) * 0.3
        acts[:, 0] += 5.0 * length
        acts[:, [WIDTHS[0], WIDTHS[0] + 1]] = acts[:, :1] / 2
        x = acts[:, : WIDTHS[0]] @ decoder[: WIDTHS[0]]
        if topic is not None:
            x += 0.5 * topic * decoder[5]
        return Texts(x + 0.05 * torch.randn(200, D_IN, generator=generator), acts, (acts > 0).float())

    topics = [(texts(topic, 0), texts(topic, 1)) for topic in range(2)]
    others = [(texts(None, 0), texts(None, 1)) for _ in range(2)]
    return sae, topics, others


def test_the_probe_sorts_by_length_until_its_features_are_taken_out(planted):
    sae, topics, others = planted
    rows = {(row["taken out"], row["probe"]): row for row in shift_rows(topics, others, sae, 0)}
    assert rows["nothing", "as trained"]["length"] > 0.85
    assert rows["nothing", "trained on balanced texts"]["topic"] > 0.95
    coarse, fine = "coarse features", "as many of the finest"
    for way in (coarse, fine, "finest features below the coarse", "as many finest features"):
        assert rows[way, "trained again"]["topic"] > 0.95, way
        assert rows[way, "trained again"]["length"] < 0.6, way
    assert rows[fine, "trained again"]["features"] == rows[coarse, "trained again"]["features"] == 8
    assert rows["as many random ones", "trained again"]["length"] > 0.85
