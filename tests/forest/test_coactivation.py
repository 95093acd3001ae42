import pytest
import torch

from sae_lens_hsae.forest import counts as coactivation
from sae_lens_hsae.forest.counts import (
    COACTIVATION_EVERY,
    follow_coactivation,
    follow_coactivation_of_entries,
    follow_frequency,
    weight_of_batch,
)

WEIGHT = 0.03


def counted(running, parents, children):
    """The running share by its definition, one pair and one token at a time, in float64."""
    expected = running.double()
    for parent in range(parents.shape[1]):
        for child in range(children.shape[1]):
            both = sum(bool(p > 0 and c > 0) for p, c in zip(parents[:, parent], children[:, child], strict=True))
            share = both / len(parents)
            expected[parent, child] = (1 - WEIGHT) * expected[parent, child] + WEIGHT * share
    return expected


@pytest.fixture
def sparse():
    generator = torch.Generator().manual_seed(0)

    def activations(n_features, density):
        fired = torch.rand(50, n_features, generator=generator) < density
        return fired * torch.rand(50, n_features, generator=generator).clamp(min=0.1)

    return activations


def entries(acts):
    tokens, features = torch.nonzero(acts, as_tuple=True)
    by_feature = torch.argsort(features, stable=True)
    return features[by_feature], tokens[by_feature]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.9])
@pytest.mark.parametrize("cost", [0, 10**9], ids=["by pairs", "by a product"])
def test_every_way_of_counting_gives_the_share_of_its_definition(sparse, density, cost, monkeypatch):
    monkeypatch.setattr(coactivation, "COST_OF_A_PAIR", cost)
    parents, children = sparse(6, density), sparse(9, density)
    running = torch.rand(6, 9, generator=torch.Generator().manual_seed(1))
    expected, of_entries = counted(running, parents, children), running.clone()
    follow_coactivation(running, parents, children, WEIGHT)
    follow_coactivation_of_entries(of_entries, entries(parents), entries(children), 50, WEIGHT)
    torch.testing.assert_close(running.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(of_entries.double(), expected, rtol=1e-5, atol=1e-7)


def test_the_frequency_is_a_running_share_of_tokens():
    running = torch.tensor([0.5, 0.0])
    follow_frequency(running, torch.tensor([10, 5]), 20, 0.01)
    torch.testing.assert_close(running, torch.tensor([0.5, 0.0025]))


def test_the_first_batch_counts_whole_and_later_ones_as_long_as_they_are_recent():
    weights = [weight_of_batch(COACTIVATION_EVERY * n) for n in range(2000)]
    assert weights[0] == 1
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == pytest.approx(0.01)
    # What a batch weighs after 250: half of the whole stands in the last eighth, nothing to speak of in the first.
    left = torch.tensor(
        [w * torch.tensor([1 - v for v in weights[i + 1 : 250]]).prod() for i, w in enumerate(weights[:250])]
    )
    assert left.sum() == pytest.approx(1)
    assert left[-32:].sum() > 0.5
    assert left[:125].sum() < 0.02
