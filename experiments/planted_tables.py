"""The first ground truth: planted trees, and how much of them each model recovers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.util import temporary_seed

from experiments.kept_names import named_by, settings_of_config
from experiments.matryoshka import groups_and_prefixes, inference_sae
from experiments.models import BATCH_TOPK, HSAE, IDEAS, MATRYOSHKA, MODELS, SAELENS_BATCH_TOPK, new_matryoshka
from experiments.planted.training import Rival, Stack, compare, settings_of
from experiments.planted.trees import (
    BATCH_SIZE,
    EASY,
    N_SAMPLES,
    STANDARD,
    SYNTH_SAE_BENCH_16K,
    UNKNOWN_L0,
    PlantedSetting,
)
from experiments.snmf import FACTORISED, SNMF, SNMF_SETTINGS, factor_levels
from sae_lens_hsae.cli.kept_cells import Cell, finish_cells
from sae_lens_hsae.forest import PAPER_RULE, FeatureForest
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.presets import INDEPENDENT, PAPER

SAME_RULE_OF = ["post hoc", SAELENS_BATCH_TOPK]
"""Models that are also measured under HSAE's rule for parents."""

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
    name = f"planted-{setting}-v{chosen.version}-{steps}steps-{n_samples}samples"
    rivals = {
        model: [settings_of_config(sae.cfg) for sae in rival.saes] for model, rival in _rivals(chosen, 0, "cpu").items()
    }
    settings = {
        **settings_of(chosen, _models(chosen)),
        "rivals": rivals,
        "snmf": SNMF_SETTINGS,
        "same rule of": SAME_RULE_OF,
    }
    cells = [
        Cell(named_by(f"{name}-seed{seed}", settings), recovered, (setting, seed, steps, n_samples, device))
        for seed in range(seeds)
    ]
    results = finish_cells(cells, folder, f"Planted trees, {setting}", workers)
    return [model for cell in results for model in cell["models"]]


def recovered(setting: str, seed: int, steps: int, n_samples: int, device: str) -> dict[str, Any]:
    """All models on one seed, side by side on the same stream."""
    chosen = SETTINGS[setting]
    models, others = _models(chosen), _rivals(chosen, seed, device)
    results = compare(chosen, seed, models, others, steps, n_samples, device, [HSAE], SAME_RULE_OF)
    return {"models": [result.to_dict() for result in results.values()]}


def _models(setting: PlantedSetting) -> dict[str, dict[str, Any]]:
    models = IDEAS | {BATCH_TOPK: MODELS[BATCH_TOPK], "HSAE (paper)": PAPER, "post hoc": INDEPENDENT}
    if not isinstance(setting.target_l0, tuple):
        models["one L0 for all levels"] = {"l0_width_exponent": 0.0}
    return models


def _rivals(setting: PlantedSetting, seed: int, device: str) -> dict[str, Rival]:
    with temporary_seed(seed):
        rivals = {MATRYOSHKA: _matryoshka(setting, device), SAELENS_BATCH_TOPK: _batch_topk(setting, device)}
    return {**rivals, SNMF: _snmf(setting, seed, device)}


def _matryoshka(setting: PlantedSetting, device: str) -> Rival:
    sae = new_matryoshka(
        Levels(setting.level_widths),
        sum(setting.sae_config().target_l0_per_level),
        setting.model.hidden_dim,
        normalize_activations="expected_average_only_in",
        device=device,
    )

    def parts(trained: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        return groups_and_prefixes(inference_sae(trained[0]), sae.cfg.matryoshka_widths)

    def as_stack(trained: Sequence[Any]) -> Stack:
        groups, _ = parts(trained)
        return groups, FeatureForest.from_saes(groups, PAPER_RULE)

    return Rival([sae], as_stack, lambda trained: parts(trained)[1])


def _batch_topk(setting: PlantedSetting, device: str) -> Rival:
    saes = [
        BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(
                d_in=setting.model.hidden_dim,
                d_sae=width,
                k=target,
                normalize_activations="expected_average_only_in",
                device=device,
            )
        )
        for width, target in zip(setting.level_widths, setting.sae_config().target_l0_per_level, strict=True)
    ]

    def as_stack(trained: Sequence[Any]) -> Stack:
        levels = [inference_sae(sae) for sae in trained]
        return levels, FeatureForest.from_saes(levels, PAPER_RULE)

    return Rival(saes, as_stack)


def _snmf(setting: PlantedSetting, seed: int, device: str) -> Rival:
    """Reads the first batches of the stream; a factorisation holds all of them at once."""

    def as_stack(_: Sequence[Any]) -> Stack:
        x = torch.cat(list(islice(setting.plant(seed, device).training_batches(), FACTORISED // BATCH_SIZE)))
        return factor_levels(x, setting.level_widths, setting.sae_config().target_l0_per_level, seed)

    return Rival([], as_stack)
