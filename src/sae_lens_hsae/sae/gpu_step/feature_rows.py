"""The activations of a batch in full, one row per feature: what training asks of them, for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.gpu_step.activation import activations
from sae_lens_hsae.sae.gpu_step.decoder import reconstructions
from sae_lens_hsae.sae.gpu_step.family_products import StructuralLoss
from sae_lens_hsae.sae.gpu_step.products import product_dtype
from sae_lens_hsae.sae.level_activation import LevelActivation, PreActivations
from sae_lens_hsae.sae.perturbation import Replacement
from sae_lens_hsae.sae.recent_firing import PackedFiring
from sae_lens_hsae.sae.structural_loss import Families


class FeatureRows:
    """What training asks of the activations of a batch, in the dtype of the products and with sums in float32.

    No method waits for the device or has a result whose shape depends on what fires. `DenseActivations` is the plain
    form of the same; the two have the same values and gradients.

    A row per feature, and not per token, because all that a step sums up or picks out it does by feature: the gradients
    of thresholds and biases, firing counts, families, replacements. ``rows`` are the activations, (n_features, batch).
    """

    def __init__(
        self,
        W_enc: torch.Tensor,
        bias: torch.Tensor,
        x: torch.Tensor,
        activation: LevelActivation,
        levels: Levels,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Form the one encoder product, and the activations.

        Takes W_enc (d_in, n_features), the bias that is added (n_features,), and x (batch, d_in), to which no gradient
        flows; weights (batch,) say how much each token counts in L0, None that all count alike.
        """
        self.levels, self._weights = levels, weights
        dtype = product_dtype(x.device, W_enc.dtype)
        self.rows, self._times, product = activations(W_enc, bias, x.detach().to(dtype), activation, weights)
        self.pre_activations = PreActivations(product, bias.detach())
        self._read_as = W_enc.dtype
        self._decoder: torch.Tensor | None = None

    def dense(self) -> torch.Tensor:
        """(batch, n_features), in the parameters' dtype, outside of the gradient's graph."""
        return self.rows.detach().T.to(self._read_as)

    def times_fired(self, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens on which each feature is active, (n_features,), of those that are counted, (batch,) bool, or all."""
        if self._weights is None and counted is None:
            return self._times.detach()
        return self._active(counted).sum(1).to(self._times.dtype)

    def firing(self, step: int, counted: torch.Tensor | None = None) -> PackedFiring:
        """Which features fire on which tokens."""
        return PackedFiring.of(self._active(counted), step)

    def _active(self, counted: torch.Tensor | None) -> torch.Tensor:
        active = self.rows.detach() > 0  # a bad batch has NaN
        return active if counted is None else active & counted

    def l0(self, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean L0 of every level, (L,), of tokens with the weights of the rows; with the rule's gradient."""
        assert weights is self._weights, "the encoder's gradient has the weights it was made with"
        total = self.rows.shape[1] if weights is None else weights.sum()
        return torch.stack([own.sum() for own in self.levels.split(self._times)]) / total

    def smallest(self) -> list[torch.Tensor]:
        """Smallest activation of every level, () each, without gradient; infinite where nothing is active."""
        return [own.masked_fill(own <= 0, torch.inf).amin() for own in self.rows.detach().split(self.levels.widths)]

    def reconstruct(
        self, W_dec: torch.Tensor, b_dec: torch.Tensor, replaced: Sequence[Replacement] = ()
    ) -> torch.Tensor:
        """Reconstructions of all levels with the replacements, (L, batch, d_in)."""
        return reconstructions(self.rows, self._decoder_rows(W_dec), W_dec, b_dec, replaced, self.levels)

    def structural_loss(
        self, W_dec: torch.Tensor, families: Families, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Σ_l Σ_i L_PC,(l,i), mean over the batch, of tokens with weights (batch,)."""
        rows = self.rows if weights is None else self.rows * weights.sqrt().to(self.rows.dtype)
        return StructuralLoss.apply(rows, W_dec, self._decoder_rows(W_dec), families)

    def _decoder_rows(self, W_dec: torch.Tensor) -> torch.Tensor:
        """``W_dec`` in the dtype of the products, made once per step."""
        if self._decoder is None:
            self._decoder = W_dec.detach().to(self.rows.dtype)
        return self._decoder
