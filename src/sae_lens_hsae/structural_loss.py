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

from sae_lens_hsae.levels import children_by_parent


class Families(NamedTuple):
    """All families of a forest, grouped by size and padded to the largest of their group.

    Attributes:
        members: flat feature indices, family after family, in each the parent first; (n_members,) int64.
            Padding repeats the parent.
        signs: +1 for a parent, −1 for a child, 0 for padding; (n_members,) float32.
        shapes: (n_families, size) of each group, in the order of ``members``.
    """

    members: torch.Tensor
    signs: torch.Tensor
    shapes: tuple[tuple[int, int], ...]


def families_of(parents: torch.Tensor) -> Families:
    """Group a parent table into families, by sizes that double, so that padding at most doubles them.

    Args:
        parents: (n_features,) int64, flat index of each feature's parent or −1.

    Returns:
        The families, on the device of ``parents``.
    """
    device = parents.device
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
    return Families(torch.cat(members).to(device), torch.cat(signs).to(device), shapes)


def structural_loss(acts: torch.Tensor, W_dec: torch.Tensor, families: Families) -> torch.Tensor:
    """Σ_l Σ_i L_PC,(l,i), mean over the batch, not yet weighted by ρ.

    Args:
        acts: activations of all levels, (batch, n_features).
        W_dec: decoder rows of all levels, (n_features, d_in).
        families: from :func:`families_of`.

    Returns:
        A scalar in float32, or float64 if ``acts`` is.
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
