"""Named sets of config fields: ``HierarchicalTrainingSAEConfig(**PAPER, d_in=…, …)``."""

from __future__ import annotations

from typing import Any

AS_PUBLISHED: dict[str, Any] = {
    "l0_width_exponent": 0.0,
    "structural_loss_every": 1,
    "hierarchy_similarity": "encoder",
    "unassigned_fraction": 0.2,
    "minimum_similarity": None,
    "outlier_limit": None,
    "dead_feature_loss": "ghost",
    "hierarchy_first_update": 100,
}
"""Parents and encoder as published (HSAE §3.3), where the defaults differ.

The first forest, long before the published 5,000 steps, is ours.
"""

PAPER: dict[str, Any] = AS_PUBLISHED | {"structural_loss_coefficient": 0.01, "perturbation_rate": 0.05}
"""The published method with its ρ and r (HSAE §4.1)."""

INDEPENDENT: dict[str, Any] = AS_PUBLISHED | {"structural_loss_coefficient": 0.0, "perturbation_rate": 0.0}
"""Exactly as many independent SAEs as there are levels; the last update is then the post-hoc assignment (App. F.2)."""


MIXED_TOKENS = 2**17
"""SAELens' buffer from which batches are drawn: about as many tokens as its ``n_batches_in_buffer`` contexts have."""


def _language_model(
    model_name: str, layer: int, d_in: int, level_widths: list[int], context_size: int, target_l0: int
) -> dict[str, Any]:
    return {
        "model_name": model_name,
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "d_in": d_in,
        "level_widths": level_widths,
        "target_l0": target_l0,
        "context_size": context_size,
        "dataset_path": "JeanKaddour/minipile",
        "is_dataset_tokenized": False,
        "exclude_special_tokens": True,
        "train_batch_size_tokens": 1024,
        "n_batches_in_buffer": MIXED_TOKENS // context_size,
        "n_batches_for_norm_estimate": 100,
        "lr": 6e-3,
        "lr_scheduler_name": "cosineannealing",
        "lr_end": 0.0,
        "adam_beta1": 0.0,
        "adam_beta2": 0.995,
    }


LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": _language_model("gpt2", 8, 768, [512, 2048, 8192], 256, 32),
    **{
        f"gemma-2-2b-layer-{layer}": _language_model("gemma-2-2b", layer, 2304, [1024, 4096, 16384], 1024, 50)
        for layer in (6, 13, 20)
    },
    "qwen3-4b-layer-18": _language_model("Qwen/Qwen3-4B", 18, 2560, [1024, 4096, 16384], 1024, 50),
}
"""Flags of ``hsae train`` for gpt2 and the paper's models, with levels that grow by four; the paper's double.

L̂0, widths and hook of Qwen follow Gemma's.

The learning rate warms up over the first tenth of the steps, unless ``lr_warm_up_steps`` is given.
"""
