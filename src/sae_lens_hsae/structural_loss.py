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


class Families(NamedTuple):
    """Families of similar size, padded to the largest of them.

    Attributes:
        members: flat feature indices, the parent first, (n_families, size) int64. Padding repeats the parent.
        signs: +1 for the parent, −1 for a child, 0 for padding; (n_families, size) float32.
    """

    members: torch.Tensor
    signs: torch.Tensor


def families_of(parents: torch.Tensor) -> tuple[Families, ...]:
    """Group a parent table into families, in buckets whose sizes double, so that padding at most doubles the work.

    Args:
        parents: (n_features,) int64, flat index of each feature's parent or −1.

    Returns:
        One :class:`Families` per bucket that is not empty, on the device of ``parents``.
    """
    device = parents.device
    parents = parents.cpu()
    n_children = torch.bincount(parents[parents >= 0], minlength=len(parents))
    children = torch.argsort(parents, stable=True)[int((parents < 0).sum()) :]
    first_child = torch.cumsum(n_children, 0) - n_children
    buckets = []
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
            members = torch.cat([heads[:, None], kin], dim=1)
            signs = torch.cat([torch.ones(len(heads), 1), -present.float()], dim=1)
            buckets.append(Families(members.to(device), signs.to(device)))
        low, high = high, 2 * high
    return tuple(buckets)


def structural_loss(acts: torch.Tensor, W_dec: torch.Tensor, families: tuple[Families, ...]) -> torch.Tensor:
    """Σ_l Σ_i L_PC,(l,i), mean over the batch, not yet weighted by ρ.

    Args:
        acts: activations of all levels, (batch, n_features).
        W_dec: decoder rows of all levels, (n_features, d_in).
        families: from :func:`families_of`.

    Returns:
        A scalar in float32, or float64 if ``acts`` is.
    """
    dtype = torch.promote_types(acts.dtype, torch.float32)
    total = torch.zeros((), dtype=dtype, device=acts.device)
    with torch.autocast(acts.device.type, enabled=False):
        for members, signs in families:
            n_families, size = members.shape
            flat = members.flatten()
            V = acts.index_select(1, flat).to(dtype) * signs.flatten().to(dtype)
            V = V.view(len(acts), n_families, size).transpose(0, 1)
            D = W_dec.index_select(0, flat).to(dtype).view(n_families, size, -1)
            # Both forms are exact; the Gram form costs batch·size² per family, the direct one batch·size·d_in.
            if size <= D.shape[-1]:
                total = total + ((V.transpose(1, 2) @ V) * (D @ D.transpose(1, 2))).sum()
            else:
                total = total + (V @ D).square().sum()
    return total / len(acts)
