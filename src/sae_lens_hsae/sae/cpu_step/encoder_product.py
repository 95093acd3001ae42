"""The one product of a step that is as large as batch and dictionary together, by the faster of torch's libraries."""

from __future__ import annotations

import torch


def product_of_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left · rightᵀ of (m, d), of any strides, and (n, d), on the CPU, outside of the gradient's graph.

    In float32 by oneDNN, where torch has it: on processors that are not Intel's, torch's own choice, MKL, leaves half
    of their vector units unused. Both round as float32 does.
    """
    left, right = left.detach(), right.detach()
    if left.dtype == torch.float32 and _has_onednn():
        # The operation by which torch.compile reaches it for tensors as they are.
        return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return left @ right.T


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
