"""Which edges a reader is shown."""

import pytest
import torch
from small_saes import D_IN, make_sae

from experiments.shared_edges import drawable, next_best, strangers
from sae_lens_hsae.evaluation import level_saes
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards


def test_edges_that_fire_are_drawn_without_copies_and_strangers_are_no_edges():
    sae = make_sae(seed=3, level_widths=[6, 20, 60])
    copy, silent = sae.forest.edges()[3, 1], sae.forest.edges()[5, 1]
    sae.W_dec.data[copy] = sae.W_dec.data[sae.parents[copy]]
    sae.threshold.data[silent] = 1e9
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(40, 16, D_IN, generator=generator)
    ids = torch.randint(12, (40, 16), generator=generator)
    settings = DashboardSettings(window=8, n_top=3, n_sampled=2)
    data = collect_dashboards(sae, sae.forest, [(ids, acts)], settings=settings, progress=False)
    edges = {tuple(edge) for edge in sae.forest.edges().tolist()}
    drawn = [tuple(edge) for edge in drawable(data, sae.forest, generator).tolist()]
    assert 5 < len(drawn) == len(set(drawn)) < len(edges)
    assert edges.issuperset(drawn)
    assert not {int(copy), int(silent)} & {child for _, child in drawn}
    assert not any(data.is_copy[child] for _, child in drawn)
    others = strangers(sae.forest, torch.tensor(drawn), generator).tolist()
    assert sorted(parent for parent, _ in others) == sorted(parent for parent, _ in drawn)
    assert not edges & {tuple(pair) for pair in others}


def test_the_next_best_parent_is_the_most_similar_of_the_others():
    sae = make_sae(seed=3, level_widths=[6, 20, 60])
    x = torch.randn(500, D_IN, generator=torch.Generator().manual_seed(0))
    fires = torch.cat([level.encode(x) != 0 for level in level_saes(sae)], dim=1).double()
    found = next_best(level_saes(sae), sae.forest, x)
    assert found.keys() == {child for _, child in sae.forest.edges().tolist() if fires[:, child].any()}
    for child, ((parent, own), (other, similarity)) in found.items():
        slow = {
            above: (
                (fires[:, above] * fires[:, child]).sum() / fires[:, child].sum() - 2 * fires[:, above].mean()
            ).item()
            for above in (range(6) if child < 26 else range(6, 26))
        }
        assert parent == sae.forest.parent(child)
        assert own == pytest.approx(slow.pop(parent), abs=1e-5)
        assert slow[other] == pytest.approx(max(slow.values()), abs=1e-6)
        assert similarity == pytest.approx(slow[other], abs=1e-5)
