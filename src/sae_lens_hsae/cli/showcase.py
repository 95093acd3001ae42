"""The main job from beginning to end: text → language model → training → saved SAE → forest, read and measured."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
from sae_lens.training.activations_store import ActivationsStore
from transformers import set_seed

from hsae_command.parsers import DASHBOARD_TOKENS, EVALUATION_TOKENS
from sae_lens_hsae.cli.evaluate import evaluate
from sae_lens_hsae.cli.explore import explore
from sae_lens_hsae.hub.saved_model import EVALUATION_FILENAME, load_hierarchical_sae
from sae_lens_hsae.interpret.family_text import MAX_CHILDREN, draw_family
from sae_lens_hsae.interpret.feature_cache import Dashboards, dashboards_folder
from sae_lens_hsae.interpret.labels import label_detection, token_labels
from sae_lens_hsae.interpret.page.first_view import MIN_CONCEPTS, first_view
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.text.load_model import model_of_run
from sae_lens_hsae.text.rows import TextSource
from sae_lens_hsae.text.token_text import TokenTexts, parting_tokens
from sae_lens_hsae.training.run_checks import check_places

TREES_SHOWN = 5
RULE = (
    f"of those that branch into at least {MIN_CONCEPTS} concepts the ones whose children narrow their parents most, "
    "that fire on words, and whose names are many and hold; of each concept's children those that narrow it most"
)
LEGEND = "level/feature = its copies one level down, its strongest words, and where it is strongest"


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
    cfg: LanguageModelSAERunnerConfig[Any], rows: Dataset | None = None, text: TextSource | None = None
) -> HierarchicalSAE:
    """Train with SAELens' own runner, load what it saved, measure it, write its explorer page and print some trees.

    Args:
        cfg: SAELens' config with a `HierarchicalTrainingSAEConfig`; needs an ``output_path``.
        rows: what to train on, tokenised rows unless ``cfg`` says otherwise; None takes ``cfg.dataset_path``.
        text: to measure on; None goes on in the training text where training stopped.

    Returns:
        The SAE as loaded from disk.

    Raises:
        ValueError: if there is no ``output_path``.
        OSError: if it cannot be written to.
    """
    if cfg.output_path is None:
        raise ValueError("output_path=None: there would be nothing to load; give a folder")
    check_places(cfg)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        set_seed(cfg.seed)  # SAELens seeds neither the weights nor the order of the activations
        with model_of_run(cfg) as model:
            runner = LanguageModelSAETrainingRunner(cfg, override_dataset=rows, override_model=model)
        runner.run()
    folder, model = cfg.output_path, runner.model
    sae = load_hierarchical_sae(folder, cfg.device)
    further = _further_rows(runner.activations_store) if text is None else None
    measured = {"text": text, "device": cfg.device, "model": model, "rows": further}
    evaluation = evaluate(folder, EVALUATION_TOKENS, output=Path(folder) / EVALUATION_FILENAME, **measured)
    targets = ", ".join(f"{target:.3g}" for target in cfg.sae.target_l0_per_level)
    print(f"\nMeasured on text that was not trained on; the targets of L0 are {targets}\n\n{evaluation}")
    page = explore(folder, n_tokens=DASHBOARD_TOKENS, renew=True, **measured)
    print(trees(sae, Dashboards.load(dashboards_folder(folder)), model.tokenizer))
    print(f"\nWalk the forest: open {page.resolve().as_uri()}\n\nLoad it again:\n\n    import sae_lens, sae_lens_hsae")
    print(f"    sae = sae_lens.SAE.load_from_disk({folder!r})")
    return sae


def _further_rows(store: ActivationsStore) -> Dataset:
    """Rows that come after those that training has read."""
    n_rows = math.ceil(DASHBOARD_TOKENS / store.context_size)
    return Dataset.from_dict({"tokens": store.get_batch_tokens(n_rows).tolist()})


def trees(
    sae: HierarchicalSAE,
    dashboards: Dashboards,
    tokenizer: Any,
    n_trees: int = TREES_SHOWN,
    max_children: int = MAX_CHILDREN,
) -> str:
    """The trees that the explorer page shows first, with copies joined to their parents."""
    concepts = sae.concepts()
    text_of = TokenTexts(tokenizer).__getitem__
    detection = label_detection(dashboards, text_of).score
    labels = token_labels(dashboards, text_of)
    roots = first_view(dashboards, sae.forest, concepts, detection, text_of, labels).families[:n_trees].tolist()
    if not roots:
        return "\nNo feature has two children that are no copies of it: train longer, or lower minimum_similarity."
    separators = frozenset(parting_tokens(tokenizer))
    drawn = [draw_family(concepts, root, dashboards, labels, text_of, separators, max_children) for root in roots]
    return "\n\n".join([f"\n{len(roots)} trees: {RULE}.\n{LEGEND}", *drawn])
