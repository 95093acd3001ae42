"""HSAE on GPT-2 small: the residual stream after block 8, three levels of 512 to 8,192 features.

Run it with `python examples/gpt2.py`; the model and the text come from the Hugging Face hub. It takes the demo's path:
train with SAELens' runner, save, load, measure, and print a few trees.
"""

from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from sae_lens_hsae import HierarchicalTrainingSAEConfig
from sae_lens_hsae.cli.showcase import paper_optimizer, train_and_show

BATCH_SIZE = 1024
STEPS = 30_000


def config() -> LanguageModelSAERunnerConfig[Any]:
    return LanguageModelSAERunnerConfig(
        sae=HierarchicalTrainingSAEConfig(
            d_in=768,
            d_sae=10_752,
            level_widths=[512, 2048, 8192],
            target_l0=32,
        ),
        model_name="gpt2",
        hook_name="blocks.8.hook_resid_post",
        dataset_path="JeanKaddour/minipile",
        is_dataset_tokenized=False,
        context_size=256,
        exclude_special_tokens=True,
        training_tokens=STEPS * BATCH_SIZE,
        train_batch_size_tokens=BATCH_SIZE,
        n_batches_in_buffer=512,  # contexts that batches are mixed from
        n_batches_for_norm_estimate=100,
        device="cuda" if torch.cuda.is_available() else "cpu",
        output_path="runs/gpt2",
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        **paper_optimizer(STEPS, lr=6e-3),
    )


if __name__ == "__main__":
    train_and_show(config())
