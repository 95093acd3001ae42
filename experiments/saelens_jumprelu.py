"""SAELens' own JumpReLU SAEs at a given L0, by its penalty on the squared distance from a target."""

from __future__ import annotations

from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

L0_COEFFICIENT = 10.0
"""Of 2 / target · (L0 − target)². With SAELens' 1.0 L0 ends far above the target."""
PRE_ACTIVATION_LOSS = 3e-6
"""SAELens' loss against dead features, at the coefficient that it recommends."""


def new_jumprelu(width: int, target: float, d_in: int) -> JumpReLUTrainingSAE:
    """SAELens' JumpReLU SAE with HSAE's fields, before training."""
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            d_in=d_in,
            d_sae=width,
            jumprelu_sparsity_loss_mode="quadratic",
            target_l0=target,
            l0_coefficient=L0_COEFFICIENT,
            pre_act_loss_coefficient=PRE_ACTIVATION_LOSS,
            jumprelu_init_threshold=1.0,
            jumprelu_bandwidth=1.0,
            jumprelu_ste_to_input=True,
            decoder_init_norm=1.0,
        )
    )
