"""The three forms of a batch's activations, and which of them a step takes; all have the same values and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae_lens_hsae.sae.cpu_step.active_entries import MAX_DENSITY, ActiveEntries
from sae_lens_hsae.sae.cpu_step.encoder_product import product_of_rows
from sae_lens_hsae.sae.cpu_step.places import places_of
from sae_lens_hsae.sae.dense_activations import DenseActivations
from sae_lens_hsae.sae.gpu_step.feature_rows import FeatureRows
from sae_lens_hsae.sae.inference import LevelStack
from sae_lens_hsae.sae.level_activation import Encoder, LevelActivation, PreActivations
from sae_lens_hsae.sae.step_output import Activations


def activations_of(
    stack: LevelStack,
    sae_in: torch.Tensor,
    rule: LevelActivation,
    weights: torch.Tensor | None = None,
    row_devices: Sequence[str] = ("cuda",),
) -> Activations:
    """The activations of a batch (batch, d_in) in the form that is the cheapest one for it.

    ``weights`` (batch,) say how much each token counts in L0, None that all count alike; on ``row_devices`` the form is
    `FeatureRows`.
    """
    alike = not torch.compiler.is_compiling() and not sae_in.requires_grad and not _is_hooked(stack)
    if alike and sae_in.device.type in row_devices:
        centre, bias = stack.centre_and_bias()
        return FeatureRows(stack.W_enc, bias, sae_in - centre, rule, stack.levels, weights)
    if alike and _may_use_entries(stack, sae_in):
        centre, bias = (tensor.detach() for tensor in stack.centre_and_bias())
        pre = PreActivations(product_of_rows(stack.W_enc.T, sae_in - centre), bias)
        found = rule.found(pre)
        places = places_of(found)
        if len(places) <= MAX_DENSITY * found.numel():
            return ActiveEntries(found, places, sae_in, pre, encoder_of(stack), rule, stack.levels)
    return dense_activations_of(stack, sae_in, rule)


def dense_activations_of(stack: LevelStack, sae_in: torch.Tensor, rule: LevelActivation) -> DenseActivations:
    """The activations of a batch in full, past the hooks; arguments as of `activations_of`."""
    hidden_pre = stack.hook_sae_acts_pre(stack.hidden_pre(sae_in))
    values, fired = rule.of_all(hidden_pre)
    return DenseActivations(stack.hook_sae_acts_post(values), hidden_pre, fired, stack.levels)


def encoder_of(stack: LevelStack) -> Encoder:
    return Encoder(stack.W_enc, stack.b_enc, stack.b_dec if stack.cfg.apply_b_dec_to_input else None)


def _is_hooked(stack: LevelStack) -> bool:
    return any(point.has_hooks() for point in (stack.hook_sae_acts_pre, stack.hook_sae_acts_post))


def _may_use_entries(stack: LevelStack, sae_in: torch.Tensor) -> bool:
    exact = stack.dtype in (torch.float32, torch.float64)
    return sae_in.device.type == "cpu" and exact and not torch.is_autocast_enabled("cpu")
