"""Products with few of a matrix's rows: weighted sums of rows, and dot products of rows, with their gradients.

On one token a few dozen of thousands of features take part. What they cost here is in proportion to them, where a
dense product pays for all. Everything is one gather kernel or its transpose: torch's ``embedding_bag``. Both read a row
for each term, and terms that share one, listed together, find it in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding_bag

from sae_lens_hsae.sae.cpu_step.places import places_of

BLOCK = 512
"""Bags whose sums are transposed at a time."""


def sum_rows(
    weights: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, bags: torch.Tensor, n_bags: int
) -> torch.Tensor:
    """Weighted sums of rows, (n_bags, d): out[b] = Σ_{e: bags[e] = b} weights[e] · table[rows[e]].

    Weights (n,) that are 0 cost nothing in the sum, and still receive their gradient, as the table does. Rows and bags
    are (n,) int32, in any order.
    """
    return _SumRows.apply(weights, table, rows, bags, n_bags)


def dot_rows(table: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Dot products of pairs of rows, int32, with the table's gradient: out[e] = ⟨table[left[e]], table[right[e]]⟩."""
    return _DotRows.apply(table, left, right)


def sum_sorted_rows(
    weights: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, bags: torch.Tensor, n_bags: int
) -> torch.Tensor:
    """`sum_rows` where ``bags`` ascend; not differentiable, as most of a gradient's steps need not be."""
    counts = torch.bincount(bags, minlength=n_bags)
    offsets = (counts.cumsum(0) - counts).int()
    return embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights)


def sum_sorted_columns(
    weights: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, bags: torch.Tensor, n_bags: int
) -> torch.Tensor:
    """`sum_sorted_rows` transposed, (d, n_bags), as a matrix of columns keeps its gradient.

    To transpose all of it would take longer than the sums: a block of bags is transposed while the cache holds it.
    """
    counts = torch.bincount(bags, minlength=n_bags)
    sums, done = weights.new_empty(table.shape[1], n_bags), 0
    for columns, own in zip(sums.split(BLOCK, dim=1), counts.split(BLOCK), strict=True):
        entries = slice(done, done := done + int(own.sum()))
        offsets = (own.cumsum(0) - own).int()
        columns.copy_(embedding_bag(rows[entries], table, offsets, mode="sum", per_sample_weights=weights[entries]).T)
    return sums


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Any, table: Any, rows: Any, bags: Any, n_bags: int) -> torch.Tensor:
        counted = places_of(weights != 0)
        terms = tuple(tensor.index_select(0, counted) for tensor in (weights, rows, bags))
        ctx.save_for_backward(table, rows, bags, *terms)
        return _gather(terms[0], table, terms[1], terms[2], n_bags)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        table, rows, bags, *terms = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_weights = _dots(grad, bags, table, rows) if ctx.needs_input_grad[0] else None
        of_table = _gather(terms[0], grad, terms[2], terms[1], len(table)) if ctx.needs_input_grad[1] else None
        return of_weights, of_table, None, None, None


class _DotRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Any, left: Any, right: Any) -> torch.Tensor:
        ctx.save_for_backward(table, left, right)
        return _dots(table, left, table, right)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        table, left, right = ctx.saved_tensors
        weights, ends, others = grads[0].repeat(2), torch.cat([left, right]), torch.cat([right, left])
        return _gather(weights, table, others, ends, len(table)), None, None


def _gather(
    weights: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, bags: torch.Tensor, n_bags: int
) -> torch.Tensor:
    # Short numbers take fewer passes to sort.
    kind = torch.int16 if n_bags <= torch.iinfo(torch.int16).max else torch.int32
    bags, order = bags.to(kind).sort(stable=True)
    return sum_sorted_rows(weights.index_select(0, order), table, rows.index_select(0, order), bags, n_bags)


def _dots(left_table: torch.Tensor, left: torch.Tensor, right_table: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    # What embedding_bag's own backward pass calls for the gradient of its weights.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(left_table, right_table, right, left, left, 0)
