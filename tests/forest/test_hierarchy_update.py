"""Choice of parents (HSAE §3.3): quantile, ties, dead levels, limited children, schedule."""

from dataclasses import replace

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from small_saes import LargestTensor

from sae_lens_hsae.forest import parents as hierarchy_update
from sae_lens_hsae.forest.counts import Counts, Firing
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.forest.parents import (
    DEFAULT_RULE,
    PAPER_RULE,
    choose_parents,
    coactivation_similarity,
    conditional_similarity,
    cosine_similarity,
    is_update_due,
    measured_similarities,
    parent_table,
)

MANY = 10**12
"""Tokens that leave no doubt about a share."""


def given_matrix(matrix):
    return lambda above, below: matrix[above, below].clone()


def matrices(values):
    return st.tuples(st.integers(1, 6), st.integers(1, 12)).flatmap(
        lambda shape: st.lists(
            st.lists(values, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    )


distinct = st.floats(-1, 1, width=32)
with_ties = st.sampled_from([-0.5, 0.0, 0.25, 0.5, float("-inf")])


@settings(max_examples=200, deadline=None)
@given(matrix=matrices(with_ties), fraction=st.sampled_from([0.0, 0.2, 0.5, 0.9]))
def test_choice_equals_the_rule_ties_included(matrix, fraction):
    similarity = torch.tensor(matrix)
    chosen = choose_parents(given_matrix(similarity), len(matrix), len(matrix[0]), fraction)
    assert chosen.tolist() == reference.choose_parents(matrix, fraction)


@settings(max_examples=200, deadline=None)
@given(
    matrix=matrices(distinct),
    fraction=st.sampled_from([0.0, 0.2, 0.5]),
    room=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_limited_children_equal_walking_all_pairs_from_the_most_similar(matrix, fraction, room, seed):
    shape = (len(matrix), len(matrix[0]))
    # All different, so that the rule has one answer.
    similarity = torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(seed)).view(shape).float()
    chosen = choose_parents(given_matrix(similarity), shape[0], shape[1], fraction, max_children=room)
    assert chosen.tolist() == reference.choose_parents(similarity.tolist(), fraction, room)
    assigned = chosen[chosen >= 0]
    assert len(assigned) == 0 or torch.bincount(assigned).max() <= room


@settings(max_examples=50, deadline=None)
@given(n_children=st.integers(1, 120), percent=st.integers(0, 99))
def test_exactly_the_stated_share_stays_unassigned(n_children, percent):
    for similarity in (torch.rand(4, n_children), torch.ones(4, n_children)):
        chosen = choose_parents(given_matrix(similarity), 4, n_children, percent / 100)
        assert (chosen < 0).sum() == percent * n_children // 100


def test_a_feature_without_direction_is_neither_parent_nor_child():
    parents = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    children = torch.tensor([[1.0, 0.1], [0.0, 0.0], [-1.0, 0.0]])
    chosen = choose_parents(cosine_similarity(parents, children), 2, 3, 0.0)
    assert chosen.tolist() == [1, -1, 1]
    dead = choose_parents(cosine_similarity(torch.zeros(2, 2), children), 2, 3, 0.0)
    assert dead.tolist() == [-1, -1, -1]


def test_features_never_active_together_are_no_pair():
    together = torch.tensor([[0.1, 0.0, 0.0], [0.2, 0.0, 0.3]])
    assert choose_parents(coactivation_similarity(together), 2, 3, 0.0).tolist() == [1, -1, 1]


def test_conditional_takes_the_parent_that_a_child_makes_likeliest():
    # The first parent fires nearly always, so that its share of the second child's tokens says nothing.
    together = torch.tensor([[0.10, 0.09, 0.0], [0.01, 0.08, 0.0]])
    similarity = conditional_similarity(together, torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.1, 0.1]), MANY)
    torch.testing.assert_close(similarity(slice(0, 2), torch.arange(2)), torch.tensor([[-0.8, -0.9], [-0.1, 0.6]]))
    assert choose_parents(similarity, 2, 3, 0.0).tolist() == [1, 1, -1]


@pytest.mark.parametrize(("both", "child"), [(1, 1), (2, 3), (40, 40), (37, 90)])
def test_a_child_of_few_firings_needs_clearer_company(both, child):
    n_tokens, parent = 1000, 100
    shares = [torch.tensor(count) / n_tokens for count in ([[both]], [parent], [child])]
    similarity = conditional_similarity(shares[0], shares[1], shares[2], n_tokens)
    low = binomtest(both, child).proportion_ci(0.95, method="wilson").low
    expected = torch.tensor([[low - 2 * parent / n_tokens]]).float()
    torch.testing.assert_close(similarity(slice(0, 1), torch.arange(1)), expected, rtol=1e-3, atol=1e-3)


def test_a_parent_fires_at_least_as_often_as_its_child():
    together = torch.tensor([[0.08], [0.05]])
    for child, chosen in ((0.081, 1), (0.08, 0)):
        similarity = conditional_similarity(together, torch.tensor([0.08, 0.11]), torch.tensor([child]), MANY)
        assert choose_parents(similarity, 2, 1, 0.0).tolist() == [chosen]
    assert choose_parents(similarity, 2, 1, 0.0, minimum_similarity=0.85).tolist() == [-1]


def test_the_bar_holds_for_the_next_best_parent_too():
    matrix = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.5, 0.3]])
    chosen = choose_parents(given_matrix(matrix), 2, 3, 0.0, max_children=1, minimum_similarity=0.4)
    assert chosen.tolist() == [0, 1, -1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cosine_ignores_lengths_and_equals_the_formula(dtype):
    generator = torch.Generator().manual_seed(0)
    parents, children = torch.randn(5, 7, generator=generator), torch.randn(9, 7, generator=generator)
    tables = (parents * 3).to(dtype), (children * torch.rand(9, 1, generator=generator)).to(dtype)
    block = cosine_similarity(*tables)(slice(0, 5), torch.arange(9))
    parents, children = (table.float() for table in tables)
    expected = torch.nn.functional.cosine_similarity(parents[:, None], children[None], dim=-1)
    torch.testing.assert_close(block, expected)


@pytest.mark.parametrize("room", [None, 2])
def test_blocks_of_any_size_give_the_same_forest(monkeypatch, room):
    similarity = torch.randint(9, (8, 50), generator=torch.Generator().manual_seed(0)).float()  # with ties
    whole = choose_parents(given_matrix(similarity), 8, 50, 0.2, room)
    monkeypatch.setattr(hierarchy_update, "BLOCK", 3)
    asked = []

    def watched(above, below):
        block = similarity[above, below].clone()
        asked.append(block.shape)
        return block

    assert torch.equal(choose_parents(watched, 8, 50, 0.2, room), whole)
    assert max(asked) == (3, 3), "no more than BLOCK parents and children at a time"


@pytest.mark.parametrize("room", [None, 2])
@pytest.mark.parametrize("source", ["encoder", "decoder"])
def test_no_more_than_a_block_is_in_memory(monkeypatch, source, room):
    monkeypatch.setattr(hierarchy_update, "BLOCK", 64)
    levels, d_in = Levels((700, 1500)), 48
    weights = torch.randn(d_in, levels.n_features, generator=torch.Generator().manual_seed(0))
    rows = weights.T if source == "encoder" else weights.T.contiguous()
    above, below = levels
    with LargestTensor() as watched:
        parent_table([cosine_similarity(rows[above], rows[below])], levels, replace(PAPER_RULE, max_children=room))
    # A block of similarities, or a number per feature. The whole matrix would be 4 MB, a copy of a level's rows 288 kB.
    assert watched.largest <= max(4 * 64 * 64, 8 * levels.n_features)


@pytest.mark.parametrize(
    ("first", "every", "freeze", "expected"),
    [
        (5, 5, None, [5, 10, 15]),
        (9, 4, None, [9, 12, 16]),
        (3, 100, 6, [3, 6]),
        (3, 100, 2, []),
        (1, 100, None, [1, 2, 4, 8, 16]),
    ],
)
def test_schedule(first, every, freeze, expected):
    assert [step for step in range(17) if is_update_due(step, first, every, freeze)] == expected


def test_features_that_fire_independently_make_no_edges(monkeypatch):
    """Most often one that fired a few times finds a parent that it fired with by chance."""
    generator, levels, n_tokens = torch.Generator().manual_seed(0), Levels((256, 1024)), 8192
    rates = [torch.exp(1.5 * torch.randn(width, generator=generator)) for width in levels.widths]
    rate = torch.cat([(l0 * each / each.sum()).clamp(max=0.5) for l0, each in zip((20, 32), rates, strict=True)])
    batches = [
        Firing.of(torch.rand(len(rate), 1024, generator=generator) < rate[:, None], step)
        for step in range(n_tokens // 1024)
    ]

    def n_edges():
        similarities = measured_similarities("conditional", Counts(batches, levels), levels, "cpu")
        return int((parent_table(similarities, levels, DEFAULT_RULE) >= 0).sum())

    assert n_edges() == 0
    monkeypatch.setattr(hierarchy_update, "Z", 0.0)  # without the interval
    assert n_edges() > 50
