"""Matrix products of half-precision factors with results in float32, and elementwise passes that become one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from sae_lens import logger

F = TypeVar("F", bound=Callable[..., Any])

# Torch learned it in 2.8, on CUDA devices alone.
_KEEPS_SUMS = "dtype" in torch.ops.aten.mm.overloads()


def product_dtype(device: torch.device, parameters: torch.dtype) -> torch.dtype:
    """What autocast makes of the factors of a product, or the parameters' own dtype without it."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return parameters


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 if ``dtype`` is that: what sums are kept in."""
    return torch.promote_types(dtype, torch.float32)


def exact_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left · right as it is summed, in float32 or float64, not rounded to the factors' half precision.

    Takes two matrices (m, k) and (k, n) of one dtype, or two batches of matrices, (b, m, k) and (b, k, n).
    """
    exact = exact_dtype(left.dtype)
    multiply = torch.mm if left.ndim == 2 else torch.bmm
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype == exact:
            return multiply(left, right)
        if left.is_cuda and _KEEPS_SUMS:
            return multiply(left, right, out_dtype=exact)
        return multiply(left.to(exact), right.to(exact))


def one_pass(function: F) -> F:
    """Have torch compile a function of large tensors into one kernel, where they are on a GPU.

    Torch needs Triton and a C compiler for that. Where it cannot, the function runs as it is written, and that is told
    once. The function's first argument decides where it runs. A kernel serves for all lengths of a tensor's dimensions
    but not for another number of tensors.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (_compiled(function) if is_compiled(args[0]) else function)(*args, **kwargs)

    return run  # pyright: ignore[reportReturnType]


def is_compiled(tensor: torch.Tensor) -> bool:
    """Whether functions of a tensor that are to be `one_pass` are so."""
    return tensor.is_cuda and not torch.compiler.is_compiling() and _can_compile(tensor.device)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # The sizes of families are others after each update of the forest; compiled anew each time, torch would give up.
    return torch.compile(function, dynamic=True)


@cache
def _can_compile(device: torch.device) -> bool:
    try:
        torch.compile(_probe)(torch.zeros(64, 64, device=device))
    except Exception as error:  # whatever it is that torch misses, training goes on without
        logger.warning(
            f"torch.compile does not work on this GPU, so a step takes several passes where one would do: {error}"
        )
        return False
    return True


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (2 * x + 1).sum(1)
