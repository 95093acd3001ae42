"""The paper's reference setting: gemma-2-2b, residual stream of layer 13, widths 2048 to 16384, L0 50 (HSAE App. A.1).

Run it with `python examples/gemma_2_2b.py`; the model, which asks you to accept its licence, and the text come from
the Hugging Face hub. What the paper does not state, the learning rate among it, is listed in `docs/paper_map.md`.
"""

from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from sae_lens_hsae import HierarchicalTrainingSAEConfig
from sae_lens_hsae.cli.showcase import paper_optimizer, train_and_show
from sae_lens_hsae.presets import PAPER

BATCH_SIZE = 1024
STEPS = 100_000_000 // BATCH_SIZE


def config() -> LanguageModelSAERunnerConfig[Any]:
    return LanguageModelSAERunnerConfig(
        sae=HierarchicalTrainingSAEConfig(
            d_in=2304,
            d_sae=30_720,
            level_widths=[2048, 4096, 8192, 16_384],
            target_l0=50,
            **PAPER,
            hierarchy_update_every=5000,
        ),
        model_name="gemma-2-2b",
        hook_name="blocks.13.hook_resid_post",
        dataset_path="JeanKaddour/minipile",
        is_dataset_tokenized=False,
        context_size=1024,
        n_batches_in_buffer=128,  # contexts that batches are mixed from
        exclude_special_tokens=True,
        training_tokens=STEPS * BATCH_SIZE,
        train_batch_size_tokens=BATCH_SIZE,
        store_batch_size_prompts=8,
        n_batches_for_norm_estimate=100,
        device="cuda" if torch.cuda.is_available() else "cpu",
        output_path="runs/gemma-2-2b-layer-13",
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        **paper_optimizer(STEPS, lr=1e-3),
    )


if __name__ == "__main__":
    train_and_show(config())
