"""Sparse products against plain loops over their terms."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_hsae.sae.cpu_step.row_products import BLOCK, dot_rows, sum_rows, sum_sorted_columns


def case(n, n_rows, n_bags, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(n, generator=generator, dtype=dtype)
    weights[torch.rand(n, generator=generator) < 0.3] = 0
    table = torch.randn(n_rows, 3, generator=generator, dtype=dtype)
    rows, others = (torch.randint(n_rows, (n,), generator=generator).int() for _ in range(2))
    bags = torch.randint(n_bags, (n,), generator=generator).int()
    return weights.requires_grad_(), table.requires_grad_(), rows, others, bags


def assert_same_with_gradients(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    seed = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0), dtype=ours.dtype)
    for got, want in zip(
        torch.autograd.grad(ours, inputs, seed), torch.autograd.grad(theirs, inputs, seed), strict=True
    ):
        torch.testing.assert_close(got, want)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), n_rows=st.integers(1, 9), n_bags=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_sums_of_rows(n, n_rows, n_bags, seed):
    weights, table, rows, _, bags = case(n, n_rows, n_bags, seed)
    theirs = torch.stack(
        [
            sum((weights[e] * table[rows[e]] for e in range(n) if bags[e] == bag), 0 * weights.sum() * table[0])
            for bag in range(n_bags)
        ]
    )
    assert_same_with_gradients(sum_rows(weights, table, rows, bags, n_bags), theirs, [weights, table])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), n_rows=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_dots_of_rows(n, n_rows, seed):
    _, table, left, right, _ = case(n, n_rows, 1, seed)
    theirs = torch.stack([(table[left[e]] * table[right[e]]).sum() for e in range(n)])
    assert_same_with_gradients(dot_rows(table, left, right), theirs, [table])


def test_without_entries_sums_are_zero_and_so_are_gradients():
    nothing, none = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int32)
    table = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(sum_rows(nothing, table, none, none, 2), torch.zeros(2, 3))
    total = sum_rows(nothing, table, none, none, 2).sum() + dot_rows(table, none, none).sum()
    assert torch.equal(torch.autograd.grad(total, table)[0], torch.zeros(4, 3))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), n_bags=st.sampled_from([1, BLOCK, BLOCK + 1, 3 * BLOCK - 1]), seed=st.integers(0, 10_000))
def test_columns_of_sums_are_those_of_every_block_of_bags(n, n_bags, seed):
    weights, table, rows, _, bags = case(n, 5, n_bags, seed)
    weights, table, bags = weights.detach(), table.detach(), bags.sort().values
    theirs = torch.zeros(3, n_bags, dtype=torch.float64)
    for e in range(n):
        theirs[:, bags[e]] += weights[e] * table[rows[e]]
    ours = sum_sorted_columns(weights, table, rows, bags, n_bags)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs)
