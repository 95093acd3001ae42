"""Activations of a batch from one encoder product, feature by feature, and the gradients' way back.

Both rules of activation are one function: what fires takes its pre-activation for a value, and with JumpReLU a gradient
flows within half a bandwidth of the threshold too (`jumprelu.py`). Pre-activations are read once on the way there and
once on the way back, whatever is made of them.
"""

from __future__ import annotations

from typing import Any

import torch

from sae_lens_hsae.sae.batch_topk import BatchTopKLevels, are_largest
from sae_lens_hsae.sae.gpu_step.products import exact_dtype, exact_product, is_compiled, one_pass
from sae_lens_hsae.sae.jumprelu import JumpReLULevels
from sae_lens_hsae.sae.level_activation import LevelActivation

NUMBERS_AT_A_TIME = 2**23
"""So many intermediate results are in memory together, where passes are not compiled into one."""


def activations(
    W_enc: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, rule: LevelActivation, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations of all levels (n_features, batch), in the dtype of x; how often features fire; and the product.

    Takes W_enc (d_in, n_features), the bias (n_features,), x (batch, d_in) in the dtype of its product, and weights of
    tokens (batch,), None for 1 each. The second, (n_features,), has the gradient that the rule gives L0. The product,
    pre-activations but for the bias, has none.
    """
    weights = x.new_ones(len(x), dtype=exact_dtype(x.dtype)) if weights is None else weights.detach()
    if isinstance(rule, JumpReLULevels):
        return _JumpReLUEncoder.apply(W_enc, bias, x, rule.threshold, weights, rule.bandwidth, rule.ste_to_input)
    assert isinstance(rule, BatchTopKLevels)
    return _BatchTopKEncoder.apply(W_enc, bias, x, weights, rule)


class _JumpReLUEncoder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        W_enc: torch.Tensor,
        bias: torch.Tensor,
        x: torch.Tensor,
        threshold: torch.Tensor,
        weights: torch.Tensor,
        bandwidth: float,
        ste_to_input: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        product = _product(W_enc, x)
        ctx.save_for_backward(x, product, bias, threshold, weights)
        ctx.settings = (bandwidth, ste_to_input, (W_enc.dtype, bias.dtype))
        ctx.mark_non_differentiable(product)
        values = torch.empty_like(product)
        times = torch.cat([_fire(*four, weights=weights) for four in _in_turns(product, bias, threshold, values)])
        return values, times, product

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, product, bias, threshold, weights = ctx.saved_tensors
        bandwidth, ste_to_input, dtypes = ctx.settings
        of_pre = torch.empty_like(product)
        turns = _in_turns(product, bias, threshold, grads[0], grads[1], of_pre)
        sums = [_gradients(*six, weights=weights, bandwidth=bandwidth, ste_to_input=ste_to_input) for six in turns]
        of_bias, of_threshold = (torch.cat(parts) for parts in zip(*sums, strict=True))
        of_W_enc, of_bias = _parameter_gradients(of_pre, of_bias, x, dtypes)
        return of_W_enc, of_bias, None, of_threshold.to(threshold.dtype), None, None, None


class _BatchTopKEncoder(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, W_enc: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, rule: BatchTopKLevels
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        product = _product(W_enc, x)
        pre = product + bias.to(product.dtype)[:, None]
        batch, compared = pre.shape[1], rule.scaled(pre)
        fired = torch.cat(
            [
                are_largest(compared[own].flatten(), int(target * batch)).view(-1, batch)
                for own, target in zip(rule.levels, rule.target_l0, strict=True)
            ]
        )
        ctx.save_for_backward(x, fired)
        ctx.dtypes = (W_enc.dtype, bias.dtype)
        times = (fired * weights).sum(1)  # autocast would round a product
        ctx.mark_non_differentiable(product, times)
        return pre * fired, times, product

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, fired = ctx.saved_tensors
        of_pre = grads[0] * fired
        of_bias = of_pre.sum(1, dtype=exact_dtype(of_pre.dtype))
        return *_parameter_gradients(of_pre, of_bias, x, ctx.dtypes), None, None, None


def _product(W_enc: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return W_enc.to(x.dtype).T @ x.T


def _parameter_gradients(
    of_pre: torch.Tensor, of_bias: torch.Tensor, x: torch.Tensor, dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[torch.Tensor, torch.Tensor]:
    return exact_product(x.T, of_pre.T).to(dtypes[0]), of_bias.to(dtypes[1])


def _in_turns(product: torch.Tensor, *others: torch.Tensor) -> list[Any]:
    rows = len(product) if is_compiled(product) else max(1, NUMBERS_AT_A_TIME // product.shape[1])
    return list(zip(*(tensor.split(rows) for tensor in (product, *others)), strict=True))


@one_pass
def _fire(
    product: torch.Tensor, bias: torch.Tensor, threshold: torch.Tensor, values: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Write the activations to ``values``; return how often each feature fires, (n_features,)."""
    exact = exact_dtype(product.dtype)
    pre = product.to(exact) + bias.to(exact)[:, None]
    fired = pre > threshold.to(exact)[:, None]
    values.copy_(pre * fired)
    return (fired * weights.to(exact)).sum(1)


@one_pass
def _gradients(
    product: torch.Tensor,
    bias: torch.Tensor,
    threshold: torch.Tensor,
    of_values: torch.Tensor,
    of_times: torch.Tensor,
    of_pre: torch.Tensor,
    weights: torch.Tensor,
    bandwidth: float,
    ste_to_input: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the gradient of the pre-activations to ``of_pre``; return those of bias and threshold, (n_features,) each.

    With 1 where |pre − θ| < ε/2 and 0 elsewhere, θ's is −Σ 1 (θ · ∂values + ∂times) / ε, SAELens' estimator for the
    value and for L0; with ``ste_to_input`` the pre-activation receives the same with the other sign.
    """
    exact = exact_dtype(product.dtype)
    theta = threshold.to(exact)[:, None]
    of_values = of_values.to(exact)
    pre = product.to(exact) + bias.to(exact)[:, None]
    near = ((pre - theta) / bandwidth).abs() < 0.5
    estimated = near * (theta * of_values + of_times.to(exact)[:, None] * weights.to(exact)) / bandwidth
    through = (pre > theta) * of_values
    total = through + estimated if ste_to_input else through
    of_pre.copy_(total)
    return total.sum(1), -estimated.sum(1)
