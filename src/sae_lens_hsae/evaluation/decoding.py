"""A level's reconstructions, from its active features alone where that is the same."""

from __future__ import annotations

from typing import Any

import torch

from sae_lens_hsae.evaluation.stacks import LevelSAE

MAX_DENSITY = 1 / 4
"""Share of active features above which the dense product is taken; up to it, gathering rows is faster."""


class Decoder:
    """``sae.decode``, or the sum of the active features' decoder rows: the same, and faster where few are active.

    The rows are summed only for an SAE that neither normalises at run time nor carries hooks, and only after its own
    ``decode`` gave the same on the first chunk with active features; any other is decoded by the SAE itself.
    """

    def __init__(self, sae: LevelSAE) -> None:
        self._sae: Any = sae
        self._gathers = None if _may_be_linear(sae) else False

    def __call__(
        self, acts: torch.Tensor, tokens: torch.Tensor, features: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Reconstructions (tokens, d_in) of activations (tokens, width).

        Args:
            acts: the activations.
            tokens: (k,) tokens of the activations other than 0, ascending.
            features: (k,) features of the same.
            values: (k,) the same activations.
        """
        if self._gathers and len(values) <= MAX_DENSITY * acts.numel():
            return self._gathered(len(acts), tokens, features, values)
        decoded = self._sae.decode(acts)
        if self._gathers is None and len(values):
            gathered = self._gathered(len(acts), tokens, features, values)
            tolerance = 1e3 * torch.finfo(decoded.dtype).eps * decoded.abs().max()
            self._gathers = gathered.shape == decoded.shape and bool((gathered - decoded).abs().max() <= tolerance)
        return decoded

    def _gathered(
        self, n_tokens: int, tokens: torch.Tensor, features: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        per_token = torch.bincount(tokens, minlength=n_tokens)
        offsets = per_token.cumsum(0) - per_token
        W_dec = self._sae.W_dec
        rows = torch.nn.functional.embedding_bag(
            features, W_dec, offsets, mode="sum", per_sample_weights=values.to(W_dec.dtype)
        )
        return rows + self._sae.b_dec


def _may_be_linear(sae: LevelSAE) -> bool:
    W_dec, b_dec = getattr(sae, "W_dec", None), getattr(sae, "b_dec", None)
    if not isinstance(W_dec, torch.Tensor) or not isinstance(b_dec, torch.Tensor) or W_dec.ndim != 2:
        return False
    if W_dec.dtype not in (torch.float32, torch.float64) or W_dec.device.type not in ("cpu", "cuda"):
        return False
    if getattr(sae.cfg, "normalize_activations", "none") not in ("none", "expected_average_only_in"):
        return False
    return not any(getattr(point, "fwd_hooks", ()) for point in getattr(sae, "hook_dict", {}).values())


def decoder_norms(sae: LevelSAE) -> torch.Tensor | None:
    """(width,) norms of the decoder rows; None where all are 1 to rounding, or the SAE has no ``W_dec``."""
    W_dec = getattr(sae, "W_dec", None)
    if not isinstance(W_dec, torch.Tensor):
        return None
    norms = W_dec.to(torch.promote_types(W_dec.dtype, torch.float32)).norm(dim=1)
    return None if bool(((norms - 1).abs() <= 8 * torch.finfo(W_dec.dtype).eps).all()) else norms
