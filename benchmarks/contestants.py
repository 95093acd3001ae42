"""What is compared: each takes training steps on the batches it is given, with the same optimizer's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from sae_lens import (
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.naive import NaiveHSAE, PlainHSAE
from benchmarks.plan import Size
from benchmarks.planted import Planted
from experiments import trainer_for
from sae_lens_hsae import HierarchicalSAETrainer, HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.config_checks import OBSERVED_STEPS
from sae_lens_hsae.forest import PAPER_RULE, FeatureForest
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.presets import INDEPENDENT, PAPER
from sae_lens_hsae.sae.cpu_step.encoder_product import product_of_rows
from sae_lens_hsae.sae.recent_firing import RecentFiring

HSAE = "HSAE"
DEFAULTS = "HSAE, defaults"
WITHOUT = "HSAE, defaults without hierarchy"
NO_HIERARCHY = "HSAE, ρ = r = 0"
STOCK = "HSAE in SAELens' trainer"
PLAIN = "HSAE, plain dense form"
NAIVE = "HSAE, naive structural loss"
SAELENS = "SAELens, independent SAEs"
MATRYOSHKA = "SAELens, Matryoshka BatchTopK"
ENCODER = "encoder product alone"

LEARNING_RATE = 1e-5
BANDWIDTH = 1.0
NEVER = 10**9


class Contestant(Protocol):
    """Anything that takes steps."""

    def step(self, batch: torch.Tensor) -> None:
        """One step on activations (batch, d_in)."""
        ...


@dataclass
class Trained:
    """SAEs and their trainers, which step on the same batch one after the other."""

    trainers: list[SAETrainer[Any, Any]]
    widths: tuple[int, ...]

    def step(self, batch: torch.Tensor) -> None:
        for trainer in self.trainers:
            trainer.step(batch)
            trainer.n_training_steps += 1

    def update_hierarchies(self) -> None:
        """Make the forest anew, as if all were counted that training counts."""
        for sae in (trainer.sae for trainer in self.trainers):
            if isinstance(sae, HierarchicalTrainingSAE):
                recent = sae.forest_updater.recent
                if recent is not None:
                    _count_all(recent)
                sae.update_hierarchy()

    def l0(self, batch: torch.Tensor) -> list[float]:
        """L0 of each level on a batch, taking a step on it."""
        acts = torch.cat([trainer.step(batch).feature_acts.detach() for trainer in self.trainers], dim=1)
        return [(own > 0).sum(1).float().mean().item() for own in acts.split(self.widths, dim=1)]


def _count_all(recent: RecentFiring) -> None:
    """Count the last batch again and again, until as many tokens are kept as in a long training."""
    last = recent.unpacked()[-1]
    while sum(batch.n_tokens for batch in recent.unpacked()) < recent.tokens_kept:
        recent.count(last._replace(step=last.step + NEVER, tokens=last.tokens.copy()))


@dataclass
class EncoderProduct:
    """What no training step can do without: x @ W_enc, of all levels at once and with no gradient, as HSAE forms it."""

    W_enc: torch.Tensor
    autocast: bool

    @torch.no_grad()
    def step(self, batch: torch.Tensor) -> None:
        if batch.device.type == "cpu":
            product_of_rows(self.W_enc.T, batch)
            return
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.autocast):
            torch.mm(batch, self.W_enc)


def _trainer_config(sae: TrainingSAE[Any], size: Size) -> SAETrainerConfig:
    """The experiments' own settings, at this batch size and precision."""
    steps = 1000
    return replace(
        trainer_for(sae, iter(()), steps).cfg,
        lr=LEARNING_RATE,
        train_batch_size_samples=size.batch,
        total_training_samples=steps * size.batch,
        autocast=size.precision == "bfloat16",
    )


def hsae(
    kind: type[HierarchicalTrainingSAE],
    fields: dict[str, Any],
    trainer_kind: type[SAETrainer[Any, Any]] = HierarchicalSAETrainer,
) -> Callable[[Size, Planted], Trained]:
    """What makes an HSAE of a class, with these fields of its config, and its trainer."""

    def build(size: Size, planted: Planted) -> Trained:
        # Updates are measured by themselves.
        own: dict[str, Any] = {**fields, "jumprelu_bandwidth": BANDWIDTH, "hierarchy_first_update": NEVER}
        cfg = HierarchicalTrainingSAEConfig(
            d_in=size.d_in,
            d_sae=size.n_features,
            level_widths=list(size.widths),
            target_l0=size.l0,
            normalize_activations="none",
            device=str(planted.directions.device),
            **own,
        )
        sae = kind(cfg)
        _set_weights(sae, planted.directions)
        sae.threshold.data.copy_(planted.thresholds.repeat_interleave(_widths(size, planted)))
        sae.sparsity.log_l0_coefficient.copy_(2 * planted.thresholds.clamp(min=1e-3).log())
        levels = [sae.level_sae(level) for level in range(len(sae.levels))]
        sae.parents.copy_(FeatureForest.from_saes(levels, PAPER_RULE).parents)  # the same forest for all
        sae.forest_updater.n_steps.fill_(OBSERVED_STEPS + 1)  # past the steps that only observe
        trainer = trainer_kind(cfg=_trainer_config(sae, size), sae=sae, data_provider=iter(()))
        return Trained([trainer], size.widths)

    return build


def _saelens_independent(size: Size, planted: Planted) -> Trained:
    trainers = []
    for rows, threshold in zip(planted.directions.split(size.widths), planted.thresholds.tolist(), strict=True):
        cfg = JumpReLUTrainingSAEConfig(
            d_in=size.d_in,
            d_sae=len(rows),
            jumprelu_init_threshold=threshold,
            jumprelu_bandwidth=BANDWIDTH,
            jumprelu_ste_to_input=True,
            l0_coefficient=threshold**2,
            device=str(rows.device),
        )
        sae = JumpReLUTrainingSAE(cfg)
        _set_weights(sae, rows)
        trainers.append(SAETrainer(cfg=_trainer_config(sae, size), sae=sae, data_provider=iter(())))
    return Trained(trainers, size.widths)


def _saelens_matryoshka(size: Size, planted: Planted) -> Trained:
    cfg = MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=size.d_in,
        d_sae=size.n_features,
        k=size.l0 * len(size.widths),
        matryoshka_widths=list(Levels(size.widths).offsets[1:]),
        device=str(planted.directions.device),
    )
    sae = MatryoshkaBatchTopKTrainingSAE(cfg)
    _set_weights(sae, planted.directions)
    trainer = SAETrainer(cfg=_trainer_config(sae, size), sae=sae, data_provider=iter(()))
    return Trained([trainer], (size.n_features,))


def _encoder_product(size: Size, planted: Planted) -> EncoderProduct:
    return EncoderProduct(planted.directions.T.contiguous(), size.precision == "bfloat16")


def _set_weights(sae: TrainingSAE[Any], directions: torch.Tensor) -> None:
    sae.W_dec.data.copy_(directions)
    sae.W_enc.data.copy_(directions.T)


def _widths(size: Size, planted: Planted) -> torch.Tensor:
    return torch.tensor(size.widths, device=planted.thresholds.device)


CONTESTANTS: dict[str, Callable[[Size, Planted], Contestant]] = {
    HSAE: hsae(HierarchicalTrainingSAE, PAPER),
    DEFAULTS: hsae(HierarchicalTrainingSAE, {}),
    # No loss of pairs, and nothing counted that fires together.
    WITHOUT: hsae(HierarchicalTrainingSAE, {"structural_loss_coefficient": 0.0, "hierarchy_similarity": "encoder"}),
    NO_HIERARCHY: hsae(HierarchicalTrainingSAE, INDEPENDENT),
    STOCK: hsae(HierarchicalTrainingSAE, PAPER, SAETrainer),
    SAELENS: _saelens_independent,
    MATRYOSHKA: _saelens_matryoshka,
    PLAIN: hsae(PlainHSAE, PAPER),
    NAIVE: hsae(NaiveHSAE, PAPER),
    ENCODER: _encoder_product,
}


@contextmanager
def matrix_precision(size: Size) -> Iterator[None]:
    """Float32 products as they are, or in TF32 where the size asks for it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if size.precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
