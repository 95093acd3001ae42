"""Tree SAE's hierarchy score on activations whose probes are known."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from experiments.probe_score import MOST_CHILDREN, probe_score
from sae_lens_hsae.forest import FeatureForest

N_PARENTS, N_CHILDREN, D_IN = 12, 24, 40


def sae_of(directions: torch.Tensor) -> StandardSAE:
    """Features that fire on what is along their directions, and write those."""
    n, d_in = directions.shape
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=n, apply_b_dec_to_input=False))
    sae.W_dec.data, sae.W_enc.data = directions.clone(), directions.T.clone()
    sae.b_enc.data.fill_(-0.5)
    return sae


@pytest.fixture(scope="module")
def planted():
    """Each child is an offspring of one parent: its direction is the parent's, and something of its own as large."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(D_IN, D_IN)).Q
    parents = torch.arange(N_CHILDREN) // 2
    child = axes[N_PARENTS : N_PARENTS + N_CHILDREN]
    active = torch.rand(6_000, N_CHILDREN) < 0.08
    x = active.float() @ (child + axes[parents]) + 0.01 * torch.randn(6_000, D_IN)
    saes = [sae_of(axes[:N_PARENTS]), sae_of(child)]
    return saes, parents, x


def forest_of(parents: torch.Tensor) -> FeatureForest:
    return FeatureForest(torch.cat([torch.full((N_PARENTS,), -1), parents]), [N_PARENTS, N_CHILDREN])


def test_true_parents_count_and_others_do_not(planted):
    saes, parents, x = planted
    found = probe_score(saes, forest_of(parents), x)
    assert found["score"] > 0.7
    assert found["shuffled parents"] < 0.3
    firings = (saes[0].encode(x) > 0).sum(0)
    assert found["edges"] == 2 * (firings >= firings.median()).sum(), "two children of each of the more frequent half"
    assert probe_score(saes, forest_of((parents + 5) % N_PARENTS), x)["score"] < 0.3


def test_a_child_counts_only_if_its_own_row_does(planted):
    saes, parents, x = planted
    turned = sae_of(saes[1].W_dec.detach().roll(7, 0))
    turned.W_enc.data = saes[1].W_enc.data  # it fires as before, and writes something else
    assert probe_score([saes[0], turned], forest_of(parents), x)["score"] < 0.3


def test_copies_are_told_apart_and_few_children_of_a_parent_are_probed(planted):
    saes, _, x = planted
    copying = sae_of(torch.cat([saes[0].W_dec.detach(), saes[1].W_dec.detach()[N_PARENTS:]]))
    firings = (saes[0].encode(x) > 0).sum(0)
    for parent, n_edges in ((firings.argmax(), MOST_CHILDREN), (firings.argmin(), 0)):
        of_one = forest_of(parent.repeat(N_CHILDREN))
        assert probe_score([saes[0], copying], of_one, x)["edges"] == n_edges, "rare parents are left out"
    own = torch.cat([torch.arange(N_PARENTS), torch.full((N_CHILDREN - N_PARENTS,), -1)])
    found = probe_score([saes[0], copying], forest_of(own), x)
    assert found["score"] > 0.9
    assert found["without copies"] != found["without copies"]  # NaN: all are copies
