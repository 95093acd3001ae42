"""Products with few of a matrix's rows: weighted sums of rows, and dot products of rows, with their gradients.

On one token a few dozen of thousands of features take part. What they cost here is in proportion to them, where a
dense product pays for all. Everything is one gather kernel or its transpose: torch's ``embedding_bag``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding_bag

MAX_SPARSE_DOTS = 0.05
"""Where more than this share of all pairs of rows is asked for, the dense product is the faster one."""


def sum_rows(
    weights: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, bags: torch.Tensor, n_bags: int
) -> torch.Tensor:
    """Weighted sums of rows: out[b] = Σ_{e: bags[e] = b} weights[e] · table[rows[e]].

    Args:
        weights: (n,); those that are 0 cost nothing in the sum, and still receive their gradient.
        table: (n_rows, d).
        rows: (n,) int64, into ``table``.
        bags: (n,) int64, below ``n_bags``, in any order.
        n_bags: how many sums.

    Returns:
        (n_bags, d); differentiable with respect to ``weights`` and ``table``.
    """
    return _SumRows.apply(weights, table, rows, bags, n_bags)


def dot_rows(table: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Dot products of pairs of rows: out[e] = ⟨table[left[e]], table[right[e]]⟩.

    Args:
        table: (n_rows, d).
        left: (n,) int64; right: (n,) int64.

    Returns:
        (n,); differentiable with respect to ``table``.
    """
    return _DotRows.apply(table, left, right)


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Any, table: Any, rows: Any, bags: Any, n_bags: int) -> torch.Tensor:
        ctx.save_for_backward(weights, table, rows, bags)
        return _gather(weights, table, rows, bags, n_bags)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights, table, rows, bags = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_weights = _dots(grad, bags, table, rows) if ctx.needs_input_grad[0] else None
        of_table = _gather(weights, grad, bags, rows, len(table)) if ctx.needs_input_grad[1] else None
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
    counted = torch.nonzero(weights).squeeze(1)
    weights, rows, bags = (tensor.index_select(0, counted) for tensor in (weights, rows, bags))
    bags, order = bags.sort(stable=True)
    offsets = torch.searchsorted(bags, torch.arange(n_bags, device=bags.device))
    rows, weights = rows.index_select(0, order), weights.index_select(0, order)
    return embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=weights)


def _dots(left_table: torch.Tensor, left: torch.Tensor, right_table: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if len(left) > MAX_SPARSE_DOTS * len(left_table) * len(right_table):
        return (left_table @ right_table.T).view(-1).index_select(0, left * len(right_table) + right)
    # What embedding_bag's own backward pass calls for the gradient of its weights.
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(left_table, right_table, right, left, left, 0)
