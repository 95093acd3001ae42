"""Which edges are drawn for a reader."""

import torch
from small_saes import D_IN, make_sae

from experiments.shared_edges import drawn
from sae_lens_hsae.forest.concepts import COPY_COSINE
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards


def test_edges_of_both_kinds_and_strangers_are_drawn_without_copies_and_silent_features():
    sae = make_sae(seed=3, level_widths=[6, 20, 60])
    copy, silent = sae.forest.edges()[3, 1], sae.forest.edges()[5, 1]
    sae.W_dec.data[copy] = sae.W_dec.data[sae.parents[copy]]
    sae.threshold.data[silent] = 1e9
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(40, 16, D_IN, generator=generator)
    ids = torch.randint(12, (40, 16), generator=generator)
    settings = DashboardSettings(window=8, n_top=3, n_sampled=2)
    data = collect_dashboards(sae, sae.forest, [(ids, acts)], settings=settings, progress=False)
    is_shared = torch.rand(len(sae.forest), generator=generator) < 0.3
    found = drawn(data, sae.forest, is_shared, generator)
    edges = {tuple(edge) for edge in sae.forest.edges().tolist()}
    kinds = {kind: [(above, below) for own, above, below in found if own == kind] for kind, _, _ in found}
    assert {len(kinds[kind]) > 5 for kind in ("found again", "not found again", "stranger")} == {True}
    for kind in ("found again", "not found again"):
        assert edges.issuperset(kinds[kind])
        assert len(set(kinds[kind])) == len(kinds[kind])
        assert {bool(is_shared[below]) for _, below in kinds[kind]} == {kind == "found again"}
        assert not {int(copy), int(silent)} & {below for _, below in kinds[kind]}
        assert all(data.parent_cosine[below] <= COPY_COSINE for _, below in kinds[kind])
    assert not edges & set(kinds["stranger"])
