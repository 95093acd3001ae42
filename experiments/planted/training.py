"""HSAE and its rivals trained side by side on planted trees, one call per setting and seed: `compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.util import temporary_seed

from experiments.kept_names import named_by, settings_of_config
from experiments.matryoshka import evaluate_groups
from experiments.models import SAME_RULE
from experiments.planted.concept_matching import match_features
from experiments.planted.tree_recovery import TreeRecovery
from experiments.planted.trees import BATCH_SIZE, N_SAMPLES, PlantedSetting, PlantedTrees, recover
from experiments.planted.true_forest import true_forest
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.evaluation.hierarchy_metrics import evaluate_forest
from sae_lens_hsae.evaluation.results import ForestEvaluation
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, level_saes
from sae_lens_hsae.forest import FeatureForest
from sae_lens_hsae.presets import INDEPENDENT
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

MODELS: dict[str, dict[str, Any]] = {"HSAE": {}, "post hoc": INDEPENDENT}
"""What `compare` trains unless told otherwise: fields of HSAE's config, by name of the model."""

COUNTED_ON = 60
"""Batches on which a rule for parents counts what fires together, where training did not."""

Stack = tuple[Sequence[LevelSAE] | SAEStack, FeatureForest]


@dataclass(frozen=True)
class Rival:
    """A model that is no HSAE.

    Attributes:
        saes: untrained SAEs of any architecture, on the same device; trained beside the others.
        as_stack: makes a stack of levels and its forest of them, once trained.
        prefixes: where a level reconstructs only together with the coarser ones: makes of them, once trained, what each
            level reconstructs with.
    """

    saes: Sequence[TrainingSAE[Any]]
    as_stack: Callable[[Sequence[TrainingSAE[Any]]], Stack]
    prefixes: Callable[[Sequence[TrainingSAE[Any]]], Sequence[Any]] | None = None


@dataclass(frozen=True)
class PlantedResult:
    """One model on one setting and seed: whether its forest is true, and whether it agrees with itself.

    Attributes:
        setting: name of the setting.
        version: of the setting.
        seed: which one.
        model: name of the model.
        n_steps: of training.
        recovery: against the true hierarchy.
        evaluation: the hierarchy metrics, on the same samples.
    """

    setting: str
    version: int
    seed: int
    model: str
    n_steps: int
    recovery: TreeRecovery
    evaluation: ForestEvaluation

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON; NaN becomes None."""
        measured = {"recovery": self.recovery.to_dict(), "evaluation": self.evaluation.to_dict()}
        return vars(self) | measured


def compare(
    setting: PlantedSetting,
    seed: int,
    models: Mapping[str, Mapping[str, Any]] = MODELS,
    others: Mapping[str, Rival] | None = None,
    n_steps: int | None = None,
    n_samples: int = N_SAMPLES,
    device: str = "cpu",
    true_parents_of: Sequence[str] = (),
    same_rule_of: Sequence[str] = (),
) -> dict[str, PlantedResult]:
    """Train models on one setting and seed, side by side on the same stream, and measure them all.

    Args:
        setting: `EASY`, `STANDARD`, or another.
        seed: of directions, samples and initial weights.
        models: HSAEs, as fields of the config by name.
        others: models of other kinds, by name.
        n_steps: of training; None takes the setting's.
        n_samples: to measure on.
        device: where everything happens.
        true_parents_of: names of models whose levels are also measured under `true_forest`, as "…, true parents".
        same_rule_of: the same under HSAE's rule for parents, as "…, HSAE's rule".

    Returns:
        One result per model, by name.

    Raises:
        ValueError: if there is no model, or two have the same name.
    """
    others = others or {}
    if not models and not others:
        raise ValueError("there is no model to train; give models or others")
    if both := set(models) & set(others):
        raise ValueError(f"models and others share the names {sorted(both)}; give each model its own")
    trees = setting.plant(seed, device)
    n_steps = setting.n_steps if n_steps is None else n_steps
    of_rivals = {f"{name} {i}": sae for name, rival in others.items() for i, sae in enumerate(rival.saes)}
    trained = train(trees, new_saes(trees, models) | of_rivals, n_steps)

    def measured(name: str, levels: Any, forest: FeatureForest, prefixes: Any = None) -> PlantedResult:
        x = (x for x, _ in trees.samples(n_samples))
        if prefixes is None:
            evaluation = evaluate_forest(levels, forest, x)
        else:
            evaluation = evaluate_groups(levels, prefixes, forest, list(x))
        return PlantedResult(
            setting=setting.name,
            version=setting.version,
            seed=seed,
            model=name,
            n_steps=n_steps,
            recovery=recover(levels, forest, trees, n_samples),
            evaluation=evaluation,
        )

    results = {}
    for name in (*models, *others):
        prefixes = None
        if name in others:
            rival = others[name]
            saes = [trained[f"{name} {i}"] for i in range(len(rival.saes))]
            levels, forest = rival.as_stack(saes)
            prefixes = rival.prefixes and rival.prefixes(saes)
        else:
            levels, forest = _stack(trained[name])
        results[name] = measured(name, levels, forest, prefixes)
        if name in true_parents_of:
            named = f"{name}, true parents"
            matches = match_features(level_saes(levels), trees.samples(n_samples))
            results[named] = measured(named, levels, true_forest(matches, trees.true_parents))
        if name in same_rule_of:
            named = name + SAME_RULE
            counted = islice(trees.training_batches(), COUNTED_ON)
            own: list[Any] = list(level_saes(levels))
            same_rule = FeatureForest.from_saes(own, activations=counted)
            results[named] = measured(named, levels, same_rule)
    return results


def of_every_seed(
    name: str,
    measure: Callable[[PlantedSetting, int, int, int], dict[str, Any]],
    setting: PlantedSetting,
    folder: Path,
    seeds: range,
    steps: int,
    n_samples: int,
    **settings: Any,
) -> list[Any]:
    """What ``measure`` finds of an HSAE on every seed, its ``"rows"``; finished cells are kept and taken again.

    Args:
        name: of the comparison.
        measure: takes setting, seed, steps of training and number of samples.
        setting: the planted trees.
        folder: where finished cells are kept.
        seeds: which ones.
        steps: of training.
        n_samples: to match features on.
        settings: what else decides the result.
    """
    title = f"{name}-{setting.name}-v{setting.version}-{steps}steps-{n_samples}samples"
    decides = {**settings_of(setting, {"HSAE": {}}), **settings}
    cells = [
        Cell(named_by(f"{title}-seed{seed}", decides), measure, (setting, seed, steps, n_samples)) for seed in seeds
    ]
    return [cell["rows"] for cell in finish_cells(cells, folder, f"{name.capitalize()}, {setting.name}")]


def settings_of(setting: PlantedSetting, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What decides HSAEs trained on a setting beside steps and seed, ready for JSON."""
    configs = {
        name: settings_of_config(setting.sae_config(**{**fields, **setting.sae_fields}))
        for name, fields in models.items()
    }
    return {"setting": asdict(setting), "configs": configs, "batch_size": BATCH_SIZE}


def new_saes(trees: PlantedTrees, models: Mapping[str, Mapping[str, Any]] = MODELS) -> dict[str, TrainingSAE[Any]]:
    """Untrained HSAEs by name, which start from the same weights as far as their configs allow.

    Args:
        trees: of the setting and seed.
        models: fields of HSAE's config by name; those that the setting asks of every model go over them.
    """
    saes: dict[str, TrainingSAE[Any]] = {}
    for name, fields in models.items():
        with temporary_seed(trees.seed):
            saes[name] = HierarchicalTrainingSAE(
                trees.setting.sae_config(**{"device": trees.model.device, **fields, **trees.setting.sae_fields})
            )
    return saes


def train(
    trees: PlantedTrees, saes: Mapping[str, TrainingSAE[Any]], n_steps: int | None = None
) -> dict[str, TrainingSAE[Any]]:
    """Train SAEs of any architecture side by side on the same stream, by SAELens' own `MultiSAETrainer`.

    Optimizer and schedule are the paper's (HSAE §3.3, App. A.1). Afterwards the factor that brought the activations to
    norm √d_in is folded, so that the SAEs read them as they are, and a forest is that of the final weights.

    Args:
        trees: what generates the stream.
        saes: by name; trained in place.
        n_steps: None takes the setting's.

    Raises:
        ValueError: if ``n_steps`` is below 1.
    """
    n_steps = trees.setting.n_steps if n_steps is None else n_steps
    if n_steps < 1:
        raise ValueError(f"n_steps={n_steps} must be at least 1")
    cfg = SAETrainerConfig(
        total_training_samples=n_steps * BATCH_SIZE,
        train_batch_size_samples=BATCH_SIZE,
        lr=trees.setting.learning_rate,
        lr_end=0.0,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=n_steps // 10,
        adam_beta1=0.0,
        adam_beta2=0.995,
        device=trees.model.device,
        dead_feature_window=100,
        n_batches_for_norm_estimate=20,
        logger=LoggingConfig(log_to_wandb=False),
    )
    stream = ({"x": x} for x in trees.training_batches())
    trained = MultiSAETrainer(cfg, dict(saes), dict.fromkeys(saes, "x"), stream).fit()
    for sae in trained.values():
        sae.eval()
        # SAELens' trainer knows nothing of a forest, and this one saves no model.
        if isinstance(sae, HierarchicalTrainingSAE):
            sae.finish_training()
    return trained


def _stack(sae: TrainingSAE[Any]) -> Stack:
    assert isinstance(sae, HierarchicalTrainingSAE)
    return sae, sae.forest
