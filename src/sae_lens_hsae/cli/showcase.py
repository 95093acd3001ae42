"""The main job from beginning to end: text → language model → training → saved SAE → forest, read and measured."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
from sae_lens.training.activations_store import ActivationsStore
from tqdm.auto import tqdm

from sae_lens_hsae.evaluation import ForestEvaluation, evaluate_forest
from sae_lens_hsae.interpret import typical_tokens
from sae_lens_hsae.interpret.tree_text import RULE, choose_trees, draw_tree, edge_scores, shown_features
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.storage.json_files import printable
from sae_lens_hsae.text.load_model import model_of_run
from sae_lens_hsae.text.token_text import TokenTexts

EVALUATION_TOKENS = 50_000
TREES_SHOWN = 3


def paper_optimizer(n_steps: int, lr: float) -> dict[str, Any]:
    """The paper's optimizer and schedule as fields of SAELens' config (§3.3, App. A.1); it does not state ``lr``."""
    return {
        "lr": lr,
        "lr_scheduler_name": "cosineannealing",
        "lr_warm_up_steps": n_steps // 10,
        "lr_end": 0.0,
        "adam_beta1": 0.0,
        "adam_beta2": 0.995,
    }


def train_and_show(
    cfg: LanguageModelSAERunnerConfig[Any], rows: Dataset | None = None, held_out: Dataset | None = None
) -> HierarchicalSAE:
    """Train with SAELens' own runner, load what it saved, measure it and print some of its trees.

    Args:
        cfg: SAELens' config with a `HierarchicalTrainingSAEConfig`; needs an ``output_path``.
        rows: what to train on, tokenised rows unless ``cfg`` says otherwise; None takes ``cfg.dataset_path``.
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
        with model_of_run(cfg) as model:
            runner = LanguageModelSAETrainingRunner(cfg, override_dataset=rows, override_model=model)
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
    progress, n_read = tqdm(total=n_tokens, desc="Measuring", unit="tok"), 0
    while n_read < n_tokens:
        x, token_ids = store.get_raw_llm_batch()
        assert token_ids is not None  # they are missing only where activations come from a cache
        if store.exclude_special_tokens is not None:
            kept = ~torch.isin(token_ids, store.exclude_special_tokens)
            x, token_ids = x[kept], token_ids[kept]
        progress.update(min(len(x), n_tokens - n_read))
        n_read += len(x)
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
    forest, scores = sae.forest, edge_scores(sae.forest, evaluation)
    roots = choose_trees(forest, evaluation, TREES_SHOWN)
    features = [feature for root in roots for feature in shown_features(forest, scores, root)]
    tokens = typical_tokens(sae.encode, features, pairs, len(tokenizer))
    texts = TokenTexts(tokenizer)
    shown = {id_: printable(texts[id_].strip() or repr(texts[id_])) for ids in tokens.values() for id_ in ids}
    names = {feature: "  ".join(shown[id_] for id_ in ids) for feature, ids in tokens.items()}
    drawn = [draw_tree(forest, scores, root, names) for root in roots]
    return "\n\n".join(
        [f"\n{len(roots)} trees: {RULE}.\nlevel/feature  its most typical tokens  (its score as a child)", *drawn]
    )
