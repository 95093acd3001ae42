"""Which edges a reader is shown."""

import torch
from small_saes import D_IN, make_sae

from experiments.shared_edges import drawable, strangers
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
