"""Decoding on a GPU, and its gradients: the product with all decoder rows against sums of the active ones.

A product with n rows costs 2 n d operations per token, a sum of k rows reads k d numbers. Which is faster depends on
k / n and on the machine; the training step takes the product (`sae_lens_hsae.sae.gpu_step`), and this says from which
width on it should not.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.functional import embedding_bag

from benchmarks.contestants import matrix_precision
from benchmarks.plan import Size
from benchmarks.timing import alternate, ratio, spread

DICTIONARIES = (16_384, 65_536, 262_144)
PRODUCT = "product with all rows"
BAGS = "torch's embedding_bag"
SPARSIFY = "sparsify's Triton kernels"


def measure_decoding(n_features: int, size: Size, rounds: int, device: str) -> dict[str, Any]:
    """Seconds of decoding one level with L0 active features per token, and of both gradients, by each way of doing it.

    Args:
        n_features: of the level.
        size: d_in, batch, L0 and precision; its widths are not used.
        rounds: turns of each.
        device: where.
    """
    dtype = torch.bfloat16 if size.precision == "bfloat16" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    rows = normal(n_features, size.d_in).requires_grad_()
    chosen = torch.randint(n_features, (size.batch, size.l0), generator=generator, device=device)
    weights = normal(size.batch, size.l0).requires_grad_()
    error = normal(size.batch, size.d_in)
    dense = torch.zeros(size.batch, n_features, device=device, dtype=dtype)
    dense.scatter_(1, chosen, weights.detach()).requires_grad_()

    def gradients(decoded: torch.Tensor, of: torch.Tensor) -> None:
        torch.autograd.grad(decoded, [rows, of], error)

    actions = {
        PRODUCT: lambda: gradients(dense @ rows, dense),
        BAGS: lambda: gradients(embedding_bag(chosen, rows, per_sample_weights=weights, mode="sum"), weights),
    }
    # Its own package is larger than what is needed of it; the file alone is imported only where it can run.
    if device.startswith("cuda") and find_spec("sparsify") is not None and n_features % 8 == 0:
        from sparsify.xformers import xformers_embedding_bag  # pyright: ignore[reportMissingImports]

        actions[SPARSIFY] = lambda: gradients(xformers_embedding_bag(chosen, rows, weights), weights)
    with matrix_precision(size):
        seconds = alternate(actions, rounds, device)
    return {
        "n_features": n_features,
        "share_active": size.l0 / n_features,
        "precision": size.precision,
        "ways": {
            name: {"seconds": spread(own), "product_as_multiple": ratio(seconds[PRODUCT], own)}
            for name, own in seconds.items()
        },
    }
