"""Structural loss L_PC: a parent's contribution should be the sum of its children's (HSAE §3.1).

For a parent p with children C(p), with a the activations and d the decoder rows,

    L_PC,p(x) = ‖ a_p d_p − Σ_{j ∈ C(p)} a_j d_j ‖²,

and 0 where C(p) is empty. A parent and its children form a *family*: with the signed activations
v = (a_p, −a_j, …) and the decoder rows D of its members, L_PC,p = ‖v D‖² = v (D Dᵀ) vᵀ. Averaged over a
batch V this is ⟨Vᵀ V, D Dᵀ⟩ / batch: only products within families are ever formed, and never
anything of shape (batch, features, d_in).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from sae_lens_hsae.forest.levels import NO_PARENT, children_by_parent
from sae_lens_hsae.sae.cpu_step.places import places_of, positions_in
from sae_lens_hsae.sae.cpu_step.row_products import dot_rows

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of a batch, the weights of dot products between decoder rows, (n,), and the features of either side, (n,) int32."""


class Families(NamedTuple):
    """All families of a forest, grouped by size and padded to the largest of their group."""

    parents: torch.Tensor  # the table they were made of, (n_features,) int64
    members: torch.Tensor  # flat indices, in each family the parent first; padding repeats it; (n_members,) int64
    signs: torch.Tensor  # +1 for a parent, −1 for a child, 0 for padding; (n_members,) float32
    shapes: tuple[tuple[int, int], ...]  # (n_families, size) of each group, in the order of ``members``


def families_of(parents: torch.Tensor) -> Families:
    """Group a parent table (n_features,) into families, by sizes that double, so that padding at most doubles them."""
    table, device = parents, parents.device
    parents = parents.cpu()
    children, offsets = children_by_parent(parents)
    first_child, n_children = offsets[:-1], offsets.diff()
    groups: list[tuple[torch.Tensor, torch.Tensor]] = []
    largest = int(n_children.max()) if len(n_children) else 0
    low, high = 0, 1
    while low < largest:
        heads = torch.nonzero((n_children > low) & (n_children <= high)).squeeze(1)
        if len(heads):
            size = int(n_children[heads].max())
            place = torch.arange(size)
            present = place < n_children[heads, None]
            places = (first_child[heads, None] + place).clamp(max=len(children) - 1)
            kin = torch.where(present, children[places], heads[:, None])
            signs = torch.cat([torch.ones(len(heads), 1), -present.float()], dim=1)
            groups.append((torch.cat([heads[:, None], kin], dim=1), signs))
        low, high = high, 2 * high
    members = [group.flatten() for group, _ in groups] or [torch.zeros(0, dtype=torch.int64)]
    signs = [group.flatten() for _, group in groups] or [torch.zeros(0)]
    shapes = tuple((len(group), group.shape[1]) for group, _ in groups)
    return Families(table, torch.cat(members).to(device), torch.cat(signs).to(device), shapes)


def structural_loss(acts: torch.Tensor, W_dec: torch.Tensor, families: Families) -> torch.Tensor:
    """Σ_l Σ_i L_PC,(l,i), mean over the batch, not yet weighted by ρ: a scalar in float32, or float64 if ``acts`` is.

    Takes activations (batch, n_features) and decoder rows (n_features, d_in) of all levels.
    """
    dtype = torch.promote_types(acts.dtype, torch.float32)
    sizes = [n_families * size for n_families, size in families.shapes]
    total = torch.zeros((), dtype=dtype, device=acts.device)
    with torch.autocast(acts.device.type, enabled=False):
        signed_acts = acts.index_select(1, families.members).to(dtype) * families.signs.to(dtype)
        rows = W_dec.index_select(0, families.members).to(dtype)
        for shape, V, D in zip(families.shapes, signed_acts.split(sizes, dim=1), rows.split(sizes), strict=True):
            V = V.reshape(len(acts), *shape).transpose(0, 1)
            D = D.view(*shape, -1)
            # Both forms are exact; the first costs batch·size² per family, the second batch·size·d_in.
            if shape[1] <= D.shape[-1]:
                total = total + ((V.transpose(1, 2) @ V) * (D @ D.transpose(1, 2))).sum()
            else:
                total = total + (V @ D).square().sum()
    return total / len(acts)


def entries_structural_loss(
    values: torch.Tensor,
    places: torch.Tensor,
    features: torch.Tensor,
    found: torch.Tensor,
    W_dec: torch.Tensor,
    parents: torch.Tensor,
) -> torch.Tensor:
    """The same loss from the entries of a batch alone: those pairs of a family that meet on a token.

    With the products written out, L_PC,p = a_p² ‖d_p‖² − 2 a_p Σ_j a_j ⟨d_p, d_j⟩ + Σ_j a_j² ‖d_j‖² + 2 Σ_{j<k} a_j a_k
    ⟨d_j, d_k⟩. What one feature has with itself or with its parent is summed over the batch first, so that their dot
    product is formed once.

    Entries are as in `ActiveEntries`, (n,): activations, flat places in ``found`` (n_features, batch), and features;
    the parents are (n_features,), on their device.
    """
    batch = found.shape[1]
    child = places_of((parents != NO_PARENT).index_select(0, features))
    own_feature = features.index_select(0, child)
    # Where the parent would be: a number for family and token.
    family = places.index_select(0, child) + batch * (parents.index_select(0, own_feature) - own_feature)
    pairs = [
        _each_with_itself(values, features, parents),
        _children_with_parents(values, places, features, found, parents, child, family),
        # Short numbers take fewer passes to sort.
        _siblings(values, features, child, family.int() if found.numel() < 2**31 else family),
    ]
    weights, one, other = (torch.cat(each) for each in zip(*pairs, strict=True))
    return (weights * dot_rows(W_dec, one, other)).sum() / batch


def _each_with_itself(values: torch.Tensor, features: torch.Tensor, parents: torch.Tensor) -> Pairs:
    """Σ a² over the batch of each feature that has kin, as often as it has families."""
    is_child = parents != NO_PARENT
    is_parent = torch.zeros_like(is_child).index_fill(0, parents[is_child], True)
    n_families = is_child.to(values.dtype) + is_parent.to(values.dtype)
    kin = torch.nonzero(n_families).squeeze(1)
    squares = n_families * torch.zeros_like(n_families).index_add(0, features, values.square())
    return squares.index_select(0, kin), kin.int(), kin.int()


def _children_with_parents(
    values: torch.Tensor,
    places: torch.Tensor,
    features: torch.Tensor,
    found: torch.Tensor,
    parents: torch.Tensor,
    child: torch.Tensor,
    family: torch.Tensor,
) -> Pairs:
    """−2 Σ a_p a_j over the batch of each child; ``family`` is the place of the parent of each entry in ``child``."""
    meet = places_of(found.view(-1).index_select(0, family))
    child, parent = child.index_select(0, meet), positions_in(places, family.index_select(0, meet))
    together = values.index_select(0, child) * values.index_select(0, parent)
    sums = values.new_zeros(len(parents)).index_add(0, features.index_select(0, child), together)
    children = torch.nonzero(parents != NO_PARENT).squeeze(1)
    return -2 * sums.index_select(0, children), children.int(), parents[children].int()


def _siblings(values: torch.Tensor, features: torch.Tensor, child: torch.Tensor, family: torch.Tensor) -> Pairs:
    """2 a_j a_k of any two entries ``child`` that share ``family``, a family on a token, and are not both silent."""
    family, order = family.sort(stable=True)
    child = child.index_select(0, order)
    active = values.detach().index_select(0, child) != 0
    first, lefts, rights = torch.arange(len(child), device=child.device), [child[:0]], [child[:0]]
    for distance in range(1, len(child)):
        # Sorted by family: what has no sibling at this distance has none further on.
        first = first[: torch.searchsorted(first, len(child) - distance)]
        other = first + distance
        same = family.index_select(0, first) == family.index_select(0, other)
        first = first.index_select(0, places_of(same))
        if len(first) == 0:
            break
        other = first + distance
        seen = places_of(active.index_select(0, first) | active.index_select(0, other))
        lefts.append(child.index_select(0, first.index_select(0, seen)))
        rights.append(child.index_select(0, other.index_select(0, seen)))
    left, right = torch.cat(lefts), torch.cat(rights)
    among_siblings = values.index_select(0, left) * values.index_select(0, right)
    return 2 * among_siblings, features.index_select(0, left), features.index_select(0, right)
