"""The models that are compared, and their training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import temporary_seed

from experiments.kept_names import settings_of_config
from experiments.matryoshka import groups_and_prefixes
from experiments.saelens_jumprelu import new_jumprelu
from experiments.snmf import SNMF, SNMF_SETTINGS
from sae_lens_hsae.cli.showcase import paper_optimizer
from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack
from sae_lens_hsae.forest import PAPER_RULE, FeatureForest
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.presets import INDEPENDENT, PAPER
from sae_lens_hsae.sae.inference import HierarchicalSAE
from sae_lens_hsae.sae.training import HierarchicalTrainingSAE

WIDTHS = (128, 256, 512, 1024)
BATCH_SIZE = 1024
"""Activations per training step, as in the paper (HSAE App. A.1)."""
LEARNING_RATE = 6e-3
BATCHES_TO_WHITEN_BY = 100
"""Batches that SAELens estimates a covariance from; models that need none do not draw them."""

MATRYOSHKA = "matryoshka, post hoc"
"""SAELens' Matryoshka BatchTopK with the same total L0; its groups are the levels."""

SAELENS_BATCH_TOPK = "SAELens BatchTopK"
"""SAELens' BatchTopK SAE of each level's width by itself, with a forest made afterwards."""

SAME_RULE = ", HSAE's rule"
"""After a model's name: its SAEs with parents by the rule that HSAE trains with."""

SAELENS_JUMPRELU = "SAELens JumpReLU"
"""SAELens' JumpReLU SAE of each level's width by itself, at the level's L0."""

WHITENED_BATCH_TOPK = "SAELens BatchTopK, whitened"
"""The same in SAELens' whitened coordinates, of input and target (its ``covariance_whitening``)."""

WIDE_BATCH_TOPK = "SAELens BatchTopK, widths 128 512 2048"
"""The same with levels that grow by four."""

NORMALIZED_BATCH_TOPK = {
    SAELENS_BATCH_TOPK: "none",
    WHITENED_BATCH_TOPK: "covariance_whitening",
    WIDE_BATCH_TOPK: "none",
}
"""SAELens' BatchTopK SAEs, with how they normalize what they read."""

LEVEL_BY_LEVEL = (*NORMALIZED_BATCH_TOPK, SAELENS_JUMPRELU)
"""Models that are an SAE for each level."""

HSAE = "HSAE"
"""With the package's defaults."""

IDEAS: dict[str, dict[str, Any]] = {
    HSAE: {},
    "ρ = 0": {"structural_loss_coefficient": 0.0},
    "L_PC in every step": {"structural_loss_every": 1},
    "forest from step 100": {"hierarchy_first_update": 100},
    "all tokens count alike": {"outlier_limit": None},
    "ghost gradients": {"dead_feature_loss": "ghost"},
    "parents by encoder cosine": {
        "hierarchy_similarity": "encoder",
        "unassigned_fraction": 0.2,
        "minimum_similarity": None,
    },
    "bandwidth 1.5": {"jumprelu_bandwidth": 1.5},
}
"""The defaults, and what each of the ideas in them is worth: the same without it."""

BATCH_TOPK = "BatchTopK levels"
"""The defaults, but for what makes features fire."""


def targets_of(finest: float, widths: Sequence[int] | None = None) -> list[float]:
    """L̂0 of every level by HSAE's default, of that of the finest; all models of a table have the same."""
    widths = list(widths or WIDTHS)
    cfg = HierarchicalTrainingSAEConfig(d_in=1, d_sae=sum(widths), level_widths=widths, target_l0=finest)
    return list(cfg.target_l0_per_level)


def widths_and_targets(finest: float, widths: Sequence[int] | None = None) -> list[tuple[int, float]]:
    """Width and L̂0 of every level, by that of the finest."""
    return list(zip(widths or WIDTHS, targets_of(finest, widths), strict=True))


def _shape(*widths: int) -> dict[str, Any]:
    """Fields of other levels than `WIDTHS`, with an L0 of 16 at the finest."""
    return {"level_widths": list(widths), "d_sae": sum(widths), "target_l0": targets_of(16, widths)}


WIDE_WIDTHS = (128, 512, 2048)
WIDE_FAMILIES = "HSAE, widths 128 512 2048"
WIDE_POST_HOC = "post hoc, widths 128 512 2048"
WIDE_BATCH_TOPK_LEVELS = "BatchTopK levels, widths 128 512 2048"
SHAPES = {
    "HSAE, widths 64 256 1024": _shape(64, 256, 1024),
    WIDE_FAMILIES: _shape(*WIDE_WIDTHS),
    "HSAE, widths 64 512 4096": _shape(64, 512, 4096),
}
"""The defaults with levels that grow by four or by eight instead of by two."""

MODELS: dict[str, dict[str, Any]] = {
    **IDEAS,
    **SHAPES,
    "paper, ρ = 0.1 and r = 0": PAPER | {"structural_loss_coefficient": 0.1, "perturbation_rate": 0.0},
    "HSAE (paper)": PAPER,
    "post hoc": INDEPENDENT,
    WIDE_POST_HOC: INDEPENDENT | _shape(*WIDE_WIDTHS),
    "no constraint": PAPER | {"structural_loss_coefficient": 0.0},
    "no perturbation": PAPER | {"perturbation_rate": 0.0},
    "full tree": PAPER | {"unassigned_fraction": 0.0},
    "fixed tree": PAPER | {"freeze_hierarchy_after": 100},  # the first forest is the last
    "binary tree": PAPER | {"max_children": 2},
    "decoder cosine": PAPER | {"hierarchy_similarity": "decoder"},
    "co-activation": PAPER | {"hierarchy_similarity": "coactivation"},
    BATCH_TOPK: {"level_activation": "batchtopk"},
    WIDE_BATCH_TOPK_LEVELS: _shape(*WIDE_WIDTHS) | {"level_activation": "batchtopk"},
    MATRYOSHKA: {},
    **{model: {} for model in LEVEL_BY_LEVEL},
}

AT_OTHER_RATES: dict[str, tuple[str, float]] = {
    f"{model}, lr {rate:g}": (model, rate)
    for model in (HSAE, "post hoc", SAELENS_BATCH_TOPK)
    for rate in (3e-3, 1.2e-2)
}
"""Models with another peak learning rate than `LEARNING_RATE`."""

SAELENS_OPTIMIZER = ", SAELens' optimizer"
"""After a model's name: with the optimizer and schedule that SAELens' runner has by default."""

ORDINARY = ", ordinary tokens"
"""After a model's name: trained on the tokens that are not outlying, such as attention sinks."""

CENTRED = ", centred"
"""After a model's name: trained in the coordinates that HSAE has by default (`Coordinates`)."""


def model_and_optimizer(model: str, steps: int) -> tuple[str, dict[str, Any]]:
    """A model's name in ``MODELS``, and optimizer and schedule as fields of SAELens' config, by its name in a table."""
    model = model.removesuffix(ORDINARY).removesuffix(CENTRED)
    if model.endswith(SAELENS_OPTIMIZER):
        defaults = {field.name: field.default for field in fields(LanguageModelSAERunnerConfig)}
        names = ("lr", "lr_scheduler_name", "lr_warm_up_steps", "adam_beta1", "adam_beta2")
        optimizer = {name: defaults[name] for name in names} | {"lr_end": defaults["lr"]}
        return model.removesuffix(SAELENS_OPTIMIZER), optimizer
    model, rate = AT_OTHER_RATES.get(model, (model, LEARNING_RATE))
    return model, paper_optimizer(steps, rate)


def new_sae(model: str, finest_l0: float, d_in: int) -> TrainingSAE[Any]:
    """A model before training, by its name in ``MODELS``."""
    levels, targets = Levels(WIDTHS), targets_of(finest_l0)
    if model == MATRYOSHKA:
        return new_matryoshka(levels, sum(targets), d_in)
    fields: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": levels.n_features,
        "level_widths": list(WIDTHS),
        "target_l0": targets,
        "normalize_activations": "none",  # the stream is scaled already
    }
    return HierarchicalTrainingSAE(HierarchicalTrainingSAEConfig(**fields | MODELS[model]))


def new_matryoshka(levels: Levels, total_l0: float, d_in: int, **fields: Any) -> MatryoshkaBatchTopKTrainingSAE:
    """SAELens' Matryoshka BatchTopK whose groups have the levels' widths."""
    return MatryoshkaBatchTopKTrainingSAE(
        MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=d_in, d_sae=levels.n_features, k=total_l0, matryoshka_widths=list(levels.offsets[1:]), **fields
        )
    )


def matryoshka_levels(sae: SAE[Any]) -> tuple[list[JumpReLUSAE], list[JumpReLUSAE]]:
    """Groups and prefixes of a trained Matryoshka SAE as SAELens saves it, by ``WIDTHS``."""
    assert isinstance(sae, JumpReLUSAE)
    return groups_and_prefixes(sae, Levels(WIDTHS).offsets[1:])


def new_batch_topk(model: str, finest_l0: float, d_in: int) -> list[BatchTopKTrainingSAE]:
    """SAELens' BatchTopK SAEs of the levels' widths and L0, by the model's name in ``NORMALIZED_BATCH_TOPK``."""
    normalize: Any = NORMALIZED_BATCH_TOPK[model]
    return [
        BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=width, k=target, normalize_activations=normalize)
        )
        for width, target in widths_and_targets(finest_l0, WIDE_WIDTHS if model == WIDE_BATCH_TOPK else None)
    ]


def settings_of(model: str, finest_l0: float, steps: int) -> dict[str, Any]:
    """What decides a trained model beside its activations and its seed, ready for JSON; ``SNMF`` is one, too."""
    levels = widths_and_targets(finest_l0)
    model, optimizer = model_and_optimizer(model, steps)
    if model == SNMF:
        return {"levels": levels, "snmf": SNMF_SETTINGS}
    with temporary_seed(0):  # the weights, of one dimension, are not used
        if model in NORMALIZED_BATCH_TOPK:
            saes: list[Any] = list(new_batch_topk(model, finest_l0, 1))
        elif model == SAELENS_JUMPRELU:
            saes = [new_jumprelu(width, target, 1) for width, target in levels]
        else:
            saes = [new_sae(model, finest_l0, 1)]
    return {
        "levels": levels,
        "configs": [settings_of_config(sae.cfg) for sae in saes],
        "optimizer": optimizer,
        "batches": (BATCH_SIZE, BATCHES_TO_WHITEN_BY),
    }


def stack_of(sae: SAE[Any] | list[SAE[Any]]) -> tuple[Sequence[LevelSAE] | SAEStack, FeatureForest]:
    """Levels and forest of any trained model; one without a forest gets it by the paper's rule."""
    if isinstance(sae, list):
        return sae, FeatureForest.from_saes(sae, PAPER_RULE)
    if isinstance(sae, HierarchicalSAE):
        return sae, sae.forest
    groups, _ = matryoshka_levels(sae)
    return groups, FeatureForest.from_saes(groups, PAPER_RULE)


def train(
    sae: TrainingSAE[Any],
    x: torch.Tensor,
    steps: int,
    seed: int,
    at_first: torch.Tensor | None = None,
    optimizer: dict[str, Any] | None = None,
) -> None:
    """Train any SAELens SAE on rows of ``x``, in an order that the seed decides.

    Args:
        at_first: what the first half of the steps reads in place of ``x``, row for row.
        optimizer: and schedule, fields of SAELens' config; the paper's at `LEARNING_RATE` by default.
    """
    early = x if at_first is None else at_first
    batches = ((early if step < steps // 2 else x)[rows] for step, rows in enumerate(_rows(len(x), seed)))
    trainer_for(sae, batches, steps, optimizer).fit()


def trainer_for(
    sae: TrainingSAE[Any], batches: Iterator[torch.Tensor], steps: int, optimizer: dict[str, Any] | None = None
) -> SAETrainer[Any, Any]:
    """SAELens' own trainer, by default with the paper's optimizer, for ``steps`` batches that are scaled already."""
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH_SIZE,
        device=str(sae.device),
        autocast=False,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH_SIZE,
        dead_feature_window=100,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=BATCHES_TO_WHITEN_BY,
        **optimizer or paper_optimizer(steps, LEARNING_RATE),
    )
    return SAETrainer(cfg=cfg, sae=sae, data_provider=batches)


def _rows(n_rows: int, seed: int) -> Iterator[torch.Tensor]:
    """The numbers of each batch's rows."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n_rows, generator=generator)[: n_rows // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE)
