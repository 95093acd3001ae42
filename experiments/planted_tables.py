"""The first ground truth: planted trees, and how much of them each model recovers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainingSAE
from sae_lens.util import temporary_seed

from experiments.matryoshka import groups_and_prefixes, inference_sae
from experiments.models import HSAE, IDEAS, MATRYOSHKA, new_matryoshka
from experiments.planted.training import Stack, compare
from experiments.planted.trees import EASY, N_SAMPLES, STANDARD, SYNTH_SAE_BENCH_16K, UNKNOWN_L0, PlantedSetting
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.forest import PAPER_RULE, FeatureForest
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.presets import INDEPENDENT, PAPER

SETTINGS = {setting.name: setting for setting in (STANDARD, UNKNOWN_L0, EASY, SYNTH_SAE_BENCH_16K)}


def reproduce_planted(
    setting: str,
    folder: Path,
    seeds: int = 5,
    steps: int | None = None,
    workers: int = 1,
    n_samples: int = N_SAMPLES,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Train every model on the planted trees of every seed; one result for each, flat.

    Args:
        setting: a name in ``SETTINGS``.
        folder: where finished cells are kept.
        seeds: how many, from 0.
        steps: of training; None takes the setting's.
        workers: processes that share the cores.
        n_samples: to measure on.
        device: where everything happens.

    Raises:
        ValueError: if there is no such setting, or ``workers`` is below 1.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting={setting!r}: choose one of {', '.join(SETTINGS)}")
    chosen = SETTINGS[setting]
    steps = chosen.n_steps if steps is None else steps
    name = f"planted-{setting}-v{chosen.version}-{steps}steps"
    cells = [Cell(f"{name}-seed{seed}", recovered, (setting, seed, steps, n_samples, device)) for seed in range(seeds)]
    results = finish_cells(cells, folder, f"Planted trees, {setting}", workers)
    return [model for cell in results for model in cell["models"]]


def recovered(setting: str, seed: int, steps: int, n_samples: int, device: str) -> dict[str, Any]:
    """All models on one seed, side by side on the same stream."""
    chosen = SETTINGS[setting]
    others: dict[str, TrainingSAE[Any]] = {MATRYOSHKA: _matryoshka(chosen, seed, device)}
    models = IDEAS | {"HSAE (paper)": PAPER, "post hoc": INDEPENDENT}
    if not isinstance(chosen.target_l0, tuple):
        models["one L0 for all levels"] = {"l0_width_exponent": 0.0}
    results = compare(chosen, seed, models, others, _matryoshka_stack, steps, n_samples, device, true_parents_of=[HSAE])
    return {"models": [result.to_dict() for result in results.values()]}


def _matryoshka(setting: PlantedSetting, seed: int, device: str) -> TrainingSAE[Any]:
    with temporary_seed(seed):
        return new_matryoshka(
            Levels(setting.level_widths),
            sum(setting.sae_config().target_l0_per_level),
            setting.model.hidden_dim,
            normalize_activations="expected_average_only_in",
            device=device,
        )


def _matryoshka_stack(sae: TrainingSAE[Any]) -> Stack:
    assert isinstance(sae, MatryoshkaBatchTopKTrainingSAE)
    groups, _ = groups_and_prefixes(inference_sae(sae), sae.cfg.matryoshka_widths)
    return groups, FeatureForest.from_saes(groups, PAPER_RULE)
