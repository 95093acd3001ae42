"""Structural loss of activations by feature: two small products for every family (HSAE §3.1, `structural_loss.py`).

With a family's activations V (size, batch), decoder rows D (size, d_in) and signs s, 1 for the parent and −1 for its
children, L_PC is ⟨s sᵀ ∘ V Vᵀ, D Dᵀ⟩ / batch. Its gradients are 2 (s sᵀ ∘ D Dᵀ) V / batch and
2 (s sᵀ ∘ V Vᵀ) D / batch. With a row for each feature, a family's rows of either table are gathered as they stand, and
all families of a size are one batched product.
"""

from __future__ import annotations

from typing import Any

import torch

from sae_lens_hsae.sae.gpu_step.products import exact_dtype, exact_product, one_pass
from sae_lens_hsae.sae.structural_loss import Families

FEW = 5
"""Families of up to this many members, nearly all there are, are written out term by term: a tensor core's tile is far
larger than their products."""


class StructuralLoss(torch.autograd.Function):
    """Σ_l Σ_i L_PC,(l,i), mean over the batch, not yet weighted by ρ: a scalar in float32, or float64.

    Takes activations (n_features, batch), decoder rows (n_features, d_in), the same in the dtype of the activations,
    and `families_of`.
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, W_dec: torch.Tensor, rows: torch.Tensor, families: Families
    ) -> torch.Tensor:
        exact = exact_dtype(values.dtype)
        total = torch.zeros((), dtype=exact, device=values.device)
        kept = []
        for members, signs in _groups(families, exact):
            if members.shape[1] <= rows.shape[1]:
                together, alike = dots_within(values, members), dots_within(rows, members)
                pairs = signs[:, :, None] * signs[:, None]
                kept += [together * pairs, alike * pairs]
                total += (together * kept[-1]).sum()
            else:
                V, D = _gather(values, members), _gather(rows, members)
                kept += [exact_product(V.mT, D * signs.to(D.dtype)[:, :, None]), V.new_empty(0)]
                total += kept[-2].square().sum()
        ctx.save_for_backward(values, rows, *kept)
        ctx.families, ctx.dtype = families, W_dec.dtype
        return total / values.shape[1]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, rows, *kept = ctx.saved_tensors
        exact = exact_dtype(values.dtype)
        of_values = _Sums(values.shape, values.dtype, values.device)
        of_rows = _Sums(rows.shape, exact, rows.device)
        scale = 2 * grads[0] / values.shape[1]
        for (members, signs), first, second in zip(_groups(ctx.families, exact), kept[::2], kept[1::2], strict=True):
            if members.shape[1] <= rows.shape[1]:
                of_V = sums_within(values, members, scale * second).to(values.dtype)
                of_D = sums_within(rows, members, scale * first)
            else:
                V, D = _gather(values, members), _gather(rows, members)
                errors = (scale * first).to(D.dtype)
                of_V = torch.bmm(D * signs.to(D.dtype)[:, :, None], errors.mT)
                of_D = exact_product(V * signs.to(V.dtype)[:, :, None], errors)
            of_values.add(of_V, members, signs)
            of_rows.add(of_D, members, signs)
        return of_values.total(), of_rows.total().to(ctx.dtype), None, None


class _Sums:
    """Collects rows of families into a table of all features.

    A feature is a member of two families at most: a child in one, the parent in another. So children's rows are
    copied to their place, parents' are added there once all have been copied, and no two writes meet.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
        # Padding goes to a row of its own.
        self._table = torch.zeros((shape[0] + 1, shape[1]), dtype=dtype, device=device)
        self._parents: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, rows: torch.Tensor, members: torch.Tensor, signs: torch.Tensor) -> None:
        """Rows (n_families, size, k) of a group; the first of a family are its parent's."""
        self._parents.append((members[:, 0], rows[:, 0].clone()))
        places = torch.where(signs < 0, members, len(self._table) - 1)[:, 1:]
        self._table.index_copy_(0, places.flatten(), rows[:, 1:].flatten(0, 1))

    def total(self) -> torch.Tensor:
        """(n_features, k)."""
        for parents, rows in self._parents:
            self._table.index_copy_(0, parents, rows.add_(self._table.index_select(0, parents)))
        return self._table[:-1]


def _groups(families: Families, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Members and signs of each group, two of (n_families, size)."""
    sizes = [n_families * size for n_families, size in families.shapes]
    pairs = zip(families.shapes, families.members.split(sizes), families.signs.to(dtype).split(sizes), strict=True)
    return [(members.view(shape), signs.view(shape)) for shape, members, signs in pairs]


def _gather(table: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Rows of the members, (n_families, size, k)."""
    return table.index_select(0, members.flatten()).view(*members.shape, -1)


def dots_within(table: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Dot products of all pairs of members of each family: (n_families, size, size), in float32 or float64.

    Takes a table (n_features, k) and members (n_families, size) int64.
    """
    if members.shape[1] <= FEW:
        return _dots_of_few(table, list(members.unbind(1)))
    found = _gather(table, members)
    return exact_product(found, found.mT)


def sums_within(table: torch.Tensor, members: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """For each member the weighted sum of its family: out[f, i] = Σ_j weights[f, i, j] · table[members[f, j]].

    Takes a table (n_features, k), members (n_families, size) int64 and weights (n_families, size, size) in float32 or
    float64, of which the sums (n_families, size, k) have the dtype.
    """
    if members.shape[1] <= FEW:
        return _sums_of_few(table, list(members.unbind(1)), weights)
    return exact_product(weights.to(table.dtype), _gather(table, members))


@one_pass
def _dots_of_few(table: torch.Tensor, members: list[torch.Tensor]) -> torch.Tensor:
    exact = exact_dtype(table.dtype)
    rows = [table.index_select(0, member).to(exact) for member in members]
    # Each pair once: every row is read once by the one kernel, and no product of whole rows is ever stored.
    dots = {(i, j): (rows[i] * rows[j]).sum(1) for i in range(len(rows)) for j in range(i + 1)}
    per_member = [torch.stack([dots[max(i, j), min(i, j)] for j in range(len(rows))], dim=1) for i in range(len(rows))]
    return torch.stack(per_member, dim=1)


@one_pass
def _sums_of_few(table: torch.Tensor, members: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    rows = [table.index_select(0, member).to(weights.dtype) for member in members]
    sums = []
    for i in range(len(rows)):
        total = weights[:, i, 0, None] * rows[0]
        for j in range(1, len(rows)):
            total = total + weights[:, i, j, None] * rows[j]
        sums.append(total)
    return torch.stack(sums, dim=1)
