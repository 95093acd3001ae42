"""Tensors stored so that no cast can touch them.

SAELens' loader casts every tensor of a file to the SAE's dtype, and bfloat16 turns parent 1059 into 1056. The bytes of
a tensor, seen as numbers from 0 to 255, are exact in every floating dtype of at least 8 significant bits.
"""

from __future__ import annotations

import torch

SUFFIX = "_bytes"


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Bytes of a tensor: (…,) of b-byte numbers → (…, b) uint8."""
    return tensor.detach().contiguous().unsqueeze(-1).view(torch.uint8)


def from_bytes(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of `as_bytes`, whatever floating dtype the bytes were cast to; a ValueError if they are none."""
    bytes_ = stored.to(torch.uint8)
    if not stored.ndim or stored.shape[-1] != dtype.itemsize or not torch.equal(bytes_.to(stored.dtype), stored):
        raise ValueError(
            f"a tensor of shape {tuple(stored.shape)} holds no bytes of {dtype} numbers; the file is damaged"
        )
    return bytes_.contiguous().view(dtype).squeeze(-1)
