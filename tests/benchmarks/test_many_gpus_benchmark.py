"""The formulas of docs/many_gpus.md: against each other, and two sharded layouts against what they send."""

from pathlib import Path

import pytest
import torch

from benchmarks import many_gpus, sharding
from benchmarks.many_gpus import layouts
from benchmarks.plan import Size

SMALL = Size(64, (64, 128), 32, 4)


def test_a_sharded_dictionary_sends_the_same_at_every_width_and_other_layouts_in_proportion():
    small, large = (layouts(2304, n_features, 4, 1024, 8) for n_features in (1_048_576, 10_485_760))
    ratios = {each.name: wide.sent / each.sent for each, wide in zip(small, large, strict=True)}
    assert ratios.pop("dictionary sharded") == 1
    assert ratios.pop("one level per rank") == 1
    assert all(ratio == pytest.approx(10, rel=0.01) for ratio in ratios.values())


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/net/dev").exists(), reason="the bytes of the loopback interface are Linux's to tell"
)
def test_a_sharded_layout_computes_the_same_and_sends_what_the_formula_says(monkeypatch):
    layout = "dictionary sharded"
    sent, loss = sharding.bytes_sent(layout, SMALL)
    levels = sharding.Levels([sharding.Level(SMALL.d_in, width) for width in SMALL.widths])
    alone = sum(levels(sharding.batch_of(rank, SMALL)) for rank in range(sharding.N_RANKS))
    assert loss == pytest.approx(float(torch.as_tensor(alone).detach()), rel=1e-4)
    monkeypatch.setattr(many_gpus, "CHECKED_SHARDED", (SMALL,))
    monkeypatch.setattr(many_gpus, "bytes_sent", lambda *_: (sent, loss))
    line = next(line for line in many_gpus.sharded_table().splitlines() if layout in line)
    by_gloo, measured = (float(number.strip(" |")) for number in line.split(" | ")[3:5])
    assert measured == pytest.approx(by_gloo, rel=0.35)  # small messages have their headers
