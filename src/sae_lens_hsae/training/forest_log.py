"""The forest in W&B while it is trained: its measures, some of its trees, and at the end the explorer page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens import SAE, LanguageModelSAERunnerConfig, logger
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_hsae.evaluation import evaluate_forest
from sae_lens_hsae.interpret.family_text import MAX_CHILDREN, children_by_narrowing
from sae_lens_hsae.interpret.feature_cache import DashboardSettings, collect_dashboards, dashboards_folder
from sae_lens_hsae.interpret.feature_cache.unembedding import unembedding_of
from sae_lens_hsae.interpret.page import TokenTexts, parting_tokens, write_page
from sae_lens_hsae.interpret.page.first_view import first_view
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer

TREES_SHOWN = 5
FEW = DashboardSettings(n_top=1, n_sampled=0, n_counterexamples=0, window=1, n_strongest_tokens=5, n_nearest=0)
"""The table shows tokens and no contexts."""
COLUMNS: list[str | int] = ["tree", "feature", "parent", "tokens it fires on", "score as a child"]
OF_BOUNDARIES = ("hamming", "p_parent_given_child", "p_child_given_parent", "coverage", "sibling_lift")


@dataclass(frozen=True)
class ForestLogging:
    """What ``HierarchicalSAETrainingRunner`` sends to W&B beyond SAELens' metrics.

    Args:
        trees: after every hierarchy update, what ``evaluate_forest`` measures per level boundary and a table of trees.
        explorer: at the end the explorer page, as an artifact; it stands in ``output_path`` as well.
        n_tokens: tokens read for them, from the beginning of the training text, in whole contexts. Their
            activations stay in memory.

    Raises:
        ValueError: if ``n_tokens`` is below 1.
    """

    trees: bool = False
    explorer: bool = False
    n_tokens: int = 20_000

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise ValueError(f"n_tokens={self.n_tokens} must be at least 1")

    def check(self, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        """Refuse a run of which nothing could be logged, before it starts.

        Raises:
            ValueError: naming the field of ``cfg`` that stands in the way.
        """
        if not (self.trees or self.explorer):
            return
        if not cfg.logger.log_to_wandb:
            raise ValueError("log_to_wandb=False: the forest would not be logged; set it to True in cfg.logger")
        if cfg.use_cached_activations:
            raise ValueError("use_cached_activations=True: the forest's log needs text; set it to False, or log none")
        if self.explorer and cfg.output_path is None:
            raise ValueError("output_path=None: there is no SAE to write the explorer page of; give a folder")


class ForestLog:
    """Logs one run; reads its sample of the text when it is made, through a store of its own."""

    def __init__(
        self, settings: ForestLogging, model: Any, cfg: LanguageModelSAERunnerConfig[Any], dataset: Any
    ) -> None:
        self._model = model
        store = ActivationsStore.from_config(model, cfg, override_dataset=dataset)
        self._excluded = [] if store.exclude_special_tokens is None else store.exclude_special_tokens.tolist()
        self._pairs = list(_sample(store, settings.n_tokens))
        tokenizer = getattr(model, "tokenizer", None)
        self._separators = parting_tokens(tokenizer) if tokenizer else []
        self._text: Callable[[int], str] = TokenTexts(tokenizer).__getitem__ if tokenizer else "⟨{}⟩".format

    def after_update(self, trainer: HierarchicalSAETrainer) -> None:
        """Log the forest as it is; what fails here must not cost the training."""
        try:
            wandb.log(self._forest(trainer), step=trainer.n_training_steps)
        except Exception:
            logger.exception("the forest could not be logged; training goes on")

    def explorer(self, folder: str | Path) -> None:
        """Write dashboards and page of the SAE saved in ``folder``, and log the page."""
        sae = SAE.load_from_disk(folder)
        assert isinstance(sae, HierarchicalSAE)
        dashboards = collect_dashboards(
            sae, sae.forest, self._pairs, exclude_tokens=self._excluded, unembedding=unembedding_of(sae, self._model)
        )
        dashboards.save(dashboards_folder(folder))
        page = write_page(
            dashboards, sae.forest, Path(folder) / "explorer.html", self._text, separators=self._separators
        )
        artifact = wandb.Artifact(f"{sae.get_name().replace('/', '__')}_explorer", type="explorer")
        artifact.add_file(str(page))
        wandb.log_artifact(artifact)

    def _forest(self, trainer: HierarchicalSAETrainer) -> dict[str, Any]:
        sae = trainer.sae
        pairs = [(token_ids, trainer.activation_scaler(x.to(sae.device))) for token_ids, x in self._pairs]
        excluded = torch.tensor(self._excluded)
        evaluation = evaluate_forest(sae, sae.forest, [x[~torch.isin(token_ids, excluded)] for token_ids, x in pairs])
        logged: dict[str, Any] = {"forest/trees": self._trees(sae, pairs)}
        for boundary in evaluation.boundaries:
            for name in OF_BOUNDARIES:
                value = getattr(boundary, name)
                if not math.isnan(value):
                    logged[f"forest/level_{boundary.parent_level}_to_{boundary.parent_level + 1}_{name}"] = value
        return logged

    def _trees(self, sae: HierarchicalTrainingSAE, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> wandb.Table:
        dashboards = collect_dashboards(sae, sae.forest, pairs, None, FEW, self._excluded, progress=False)
        forest, concepts, scores = dashboards.forest, sae.concepts(), dashboards.narrowing
        without_detection = torch.full((len(forest),), torch.nan)
        families = first_view(dashboards, forest, concepts, without_detection, self._text, {}).families
        roots = families[:TREES_SHOWN].tolist()
        if not roots:  # an early forest may hold no tree that branches
            sizes = torch.bincount(concepts.top_of_tree)
            roots = sizes.argsort(descending=True, stable=True)[:TREES_SHOWN].tolist()
        rows = []

        def add(root: int, feature: int, parent: int | None) -> None:
            tokens, score = dashboards.strongest_tokens[feature].tolist(), scores[feature].item()
            rows.append(
                [
                    forest.levels.name(root),
                    forest.levels.name(feature),
                    None if parent is None else forest.levels.name(parent),
                    "  ".join(self._text(id_) for id_ in tokens if id_ >= 0),
                    None if math.isnan(score) else score,
                ]
            )
            for child in children_by_narrowing(concepts, feature, dashboards)[:MAX_CHILDREN]:
                add(root, child, feature)

        for root in roots:
            add(root, root, None)
        return wandb.Table(columns=COLUMNS, data=rows)


def _sample(store: ActivationsStore, n_tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids (batch, context) and activations (batch, context, d_in) of the text's beginning, on the CPU."""
    seen = 0
    while seen < n_tokens:
        left = -(-(n_tokens - seen) // store.context_size)
        try:
            token_ids = store.get_batch_tokens(min(left, store.store_batch_size_prompts), raise_at_epoch_end=True)
        except StopIteration:  # the text is shorter; the unfinished batch is lost with it
            break
        x = store.get_activations(token_ids)
        token_ids = token_ids[:, slice(*store.seqpos_slice)].cpu()
        yield token_ids, x.float().cpu()
        seen += token_ids.numel()
    if not seen:
        raise ValueError(
            f"the training text is shorter than one batch of {store.store_batch_size_prompts} contexts, too short for "
            "the forest's log; give more text, or lower store_batch_size_prompts"
        )
