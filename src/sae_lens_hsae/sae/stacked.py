"""SAEs that were trained one by one, as the levels of one stack: which can be, and the stack's config and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import JumpReLUSAE, StandardSAE
from sae_lens.saes.sae import SAE, SAEMetadata

from sae_lens_hsae.config import HierarchicalSAEConfig
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.forest.stack_checks import check_flat, check_one_token, check_same_input, check_widths

OF_ONE_SAE = ("hsae_level", "l0", "neuronpedia_id", "num_dead_features")
"""Metadata that say something of a single SAE, and nothing of a stack."""
WITHOUT_STACK = "FeatureForest.from_saes() takes it as it is, and docs/explorer.md says how to write its page by hand"


def check_stackable(saes: Sequence[SAE[Any]], forest: FeatureForest) -> None:
    """Check that SAEs can be the levels of one stack with this forest; a ValueError if they cannot."""
    check_widths(saes, forest.level_widths)
    check_one_token(saes)
    for level, sae in enumerate(saes):
        # No subclass either, which may encode in another way.
        if type(sae) not in (JumpReLUSAE, StandardSAE):
            raise ValueError(
                f"level {level} is a {type(sae).__name__}, but a stack holds JumpReLU and standard (ReLU) SAEs; load a "
                f"training SAE from what its save_inference_model() writes; {WITHOUT_STACK}"
            )
        if sae.cfg.normalize_activations != "none":
            raise ValueError(
                f"level {level} has normalize_activations={sae.cfg.normalize_activations!r}, but a stack reads "
                "activations as they are; fold a fixed scale in with fold_activation_norm_scaling_factor() or "
                f"fold_activation_whitening(); {WITHOUT_STACK}"
            )
        if sae.use_error_term:
            raise ValueError(f"level {level} has use_error_term=True, which a stack has not; set it to False")
    check_same_input(saes)
    check_flat(saes)
    for name in ("dtype", "device"):
        values = [str(getattr(sae.W_dec, name)) for sae in saes]
        if len(set(values)) > 1:
            raise ValueError(f"levels have different {name}s {values}; move them to one with sae.to({name}=…)")


def stacked_config(saes: Sequence[SAE[Any]]) -> HierarchicalSAEConfig:
    """The config of a stack of SAEs, on the device "meta", where no weights are drawn only to be replaced."""
    cfg, widths = saes[0].cfg, [sae.cfg.d_sae for sae in saes]
    return HierarchicalSAEConfig(
        d_in=cfg.d_in,
        d_sae=sum(widths),
        level_widths=widths,
        device="meta",
        # Kept where all subtract b_dec: in half precision b_enc would lose digits to it.
        apply_b_dec_to_input=all(sae.cfg.apply_b_dec_to_input for sae in saes),
        reshape_activations=cfg.reshape_activations,
        metadata=SAEMetadata(**{name: value for name, value in cfg.metadata.items() if name not in OF_ONE_SAE}),
    )


@torch.no_grad()
def stacked_tensors(saes: Sequence[Any], subtract_b_dec: bool) -> dict[str, torch.Tensor]:
    """Copies of all levels' tensors as `LevelStack` has them, without the parent table.

    Where the stack is not to ``subtract_b_dec``, that goes into b_enc of those SAEs that do.
    """
    b_enc = [
        sae.b_enc if sae.cfg.apply_b_dec_to_input == subtract_b_dec else sae.b_enc - sae.b_dec @ sae.W_enc
        for sae in saes
    ]
    return {
        "W_enc": torch.cat([sae.W_enc for sae in saes], dim=1),
        "b_enc": torch.cat(b_enc),
        "threshold": torch.cat([getattr(sae, "threshold", torch.zeros_like(sae.b_enc)) for sae in saes]),
        "W_dec": torch.cat([sae.W_dec for sae in saes]),
        "b_dec": torch.stack([sae.b_dec for sae in saes]),
    }
