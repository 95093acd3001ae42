"""The one product of a step that is as large as batch and dictionary together, by the faster of torch's libraries."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch


def product_of_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left · rightᵀ of (m, d), of any strides, and (n, d), on the CPU, outside of the gradient's graph.

    Torch's own choice, MKL, leaves half of the vector units of other makers' processors unused. There it is oneDNN
    in float32, where torch has it; on Intel's, MKL is the faster one. Both round as float32 does.
    """
    left, right = left.detach(), right.detach()
    if left.dtype == torch.float32 and _has_onednn() and not _is_intel():
        # The operation by which torch.compile reaches it for tensors as they are.
        return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return left @ right.T


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _is_intel() -> bool:
    cpuinfo = Path("/proc/cpuinfo")  # of Linux; elsewhere torch tells nothing of the maker
    return cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text(errors="replace")
