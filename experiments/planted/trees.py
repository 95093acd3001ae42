"""Planted trees: activations from a known hierarchy, and how much of it a forest recovers.

Two settings are named and versioned, so that results stay comparable: `EASY` and `STANDARD`. Whatever changes what
one of them generates, or asks of the levels, makes a new version. Training on them is in `training`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from sae_lens.synthetic import (
    ConstantFiringProbabilityConfig,
    Hierarchy,
    HierarchyConfig,
    LowRankCorrelationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    generate_hierarchy,
)
from sae_lens.util import temporary_seed

from experiments.planted.absorption import measure_absorption
from experiments.planted.concept_matching import Samples, match_features
from experiments.planted.tree_recovery import TreeRecovery, score_recovery
from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.evaluation.stacks import LevelSAE, SAEStack, check_fit, level_saes
from sae_lens_hsae.forest import NO_PARENT, FeatureForest

BATCH_SIZE = 1024
N_SAMPLES = 100_000
"""Samples to measure on."""

_TRAINING, _MEASURING, _ORDER = range(3)


@dataclass(frozen=True)
class PlantedSetting:
    """A generator with a known hierarchy, and the levels that are to recover it.

    The trees have the same shape for every seed, so that seeds can be compared; the seed sets the concepts' directions
    and correlations, the samples, and the initial weights of what is trained on them.

    Attributes:
        name: for reports.
        version: changes with anything below.
        model: SAELens' config of the generator; its ``seed`` is replaced.
        tree_seed: of the shape of the trees, where ``model.hierarchy`` leaves it open.
        level_widths: features of each level, coarse to fine.
        target_l0: L̂0 of each level, or one number for HSAE to make the levels' from.
        learning_rate: at its highest.
        n_steps: training steps of `BATCH_SIZE` samples.
        sae_fields: other fields of HSAE's config, for every model trained on the setting.
        source: a folder or Hugging Face repository that holds the generator; ``model`` then only states its sizes, the
            trees and directions are the same for every seed, and loading takes a network or the folder.
        n_stored: training samples, seen again and again in a new order each time; None for ever new ones.
    """

    name: str
    version: int
    model: SyntheticModelConfig = field(repr=False, hash=False)
    tree_seed: int
    level_widths: tuple[int, ...]
    target_l0: tuple[float, ...] | float
    learning_rate: float
    n_steps: int
    sae_fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    source: str | None = None
    n_stored: int | None = None

    def plant(self, seed: int, device: str = "cpu") -> PlantedTrees:
        """The generator of one seed.

        Raises:
            ValueError: if ``seed`` is negative, or ``model`` has no hierarchy.
        """
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or more")
        if self.source is not None:
            model = SyntheticModel.load_from_source(self.source, device)
            if model.hierarchy is None:
                raise ValueError(f"source={self.source!r} plants no tree: its generator has no hierarchy")
            return PlantedTrees(self, seed, model, true_parents(model.hierarchy, self.model.num_features))
        if self.model.hierarchy is None:
            raise ValueError(f"setting {self.name!r} plants no tree: model.hierarchy is None")
        hierarchy = generate_hierarchy(self.model.num_features, self.model.hierarchy, seed=self.tree_seed)
        model = SyntheticModel(replace(self.model, seed=seed), hierarchy=hierarchy, device=device)
        return PlantedTrees(self, seed, model, true_parents(hierarchy, self.model.num_features))

    def sae_config(self, **overrides: Any) -> HierarchicalTrainingSAEConfig:
        """HSAE's config for the setting; ``overrides`` are fields of it."""
        fields: dict[str, Any] = {
            "d_in": self.model.hidden_dim,
            "d_sae": sum(self.level_widths),
            "level_widths": list(self.level_widths),
            "target_l0": list(self.target_l0) if isinstance(self.target_l0, tuple) else self.target_l0,
            "normalize_activations": "expected_average_only_in",
        }
        return HierarchicalTrainingSAEConfig(**fields | dict(self.sae_fields) | overrides)


@dataclass(frozen=True, eq=False)
class PlantedTrees:
    """A setting's generator for one seed.

    Attributes:
        setting: where it comes from.
        seed: of everything random.
        model: SAELens' generator.
        true_parents: (n_concepts,) int64, each concept's parent, -1 for none.
    """

    setting: PlantedSetting
    seed: int
    model: SyntheticModel = field(repr=False)
    true_parents: torch.Tensor = field(repr=False)

    def samples(self, n_samples: int = N_SAMPLES) -> Samples:
        """Samples to measure on, activations (batch, d_in) and concepts (batch, n_concepts); the same on every call.

        Raises:
            ValueError: on the first sample, if ``n_samples`` is below 1.
        """
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples} must be at least 1")
        for batch, start in enumerate(range(0, n_samples, BATCH_SIZE)):
            with temporary_seed(self._seed_of(_MEASURING, batch)):
                sample = self.model.sample_with_features(min(BATCH_SIZE, n_samples - start))
            yield sample

    def training_batches(self) -> Iterator[torch.Tensor]:
        """Activations (BATCH_SIZE, d_in) to train on, without end; the same on every call."""
        if self.setting.n_stored is None:
            yield from self._new_batches()
        n_batches = max(1, (self.setting.n_stored or 0) // BATCH_SIZE)
        stored = torch.cat(list(islice(self._new_batches(), n_batches)))
        for epoch in count():
            order = torch.randperm(len(stored), generator=torch.Generator().manual_seed(self._seed_of(_ORDER, epoch)))
            for rows in order.to(stored.device).split(BATCH_SIZE):
                yield stored[rows]

    def _new_batches(self) -> Iterator[torch.Tensor]:
        for batch in count():
            # A seed for each batch: the stream must not depend on who else draws random numbers meanwhile.
            with temporary_seed(self._seed_of(_TRAINING, batch)):
                x = self.model.sample(BATCH_SIZE)
            yield x

    def _seed_of(self, stream: int, batch: int) -> int:
        # torch's CPU generator uses 32 bits of a seed only, so the three numbers have to be hashed.
        return int(np.random.SeedSequence([self.seed, stream, batch]).generate_state(1)[0])


EASY = PlantedSetting(
    name="easy",
    version=1,
    # An active concept that has children has exactly one active: compensation raises their probability to 1
    # (of which SAELens warns), then they exclude each other.
    model=SyntheticModelConfig(
        num_features=336,
        hidden_dim=128,
        firing_probability=ConstantFiringProbabilityConfig(0.1),
        hierarchy=HierarchyConfig(
            total_root_nodes=16,
            branching_factor=4,
            max_depth=2,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
        ),
        bias=False,
    ),
    tree_seed=0,
    level_widths=(16, 64, 256),
    # A level is as wide as one depth of the trees has concepts, and 0.1 of 16 are active at every depth.
    target_l0=(1.6, 1.6, 1.6),
    learning_rate=1e-2,
    n_steps=4000,
    # Every concept below the roots has a parent. L0 has far to fall, and at the usual rate many of the finest level's
    # features would die on the way.
    sae_fields={"unassigned_fraction": 0.0, "sparsity_rate": 0.002},
)
"""16 roots × 4 × depth 2. Only proves that nothing is broken: a post-hoc forest already is the true one there."""

STANDARD = PlantedSetting(
    name="standard",
    version=1,
    model=SyntheticModelConfig(
        num_features=700,
        hidden_dim=96,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.6, max_prob=0.3, min_prob=0.003),
        hierarchy=HierarchyConfig(
            total_root_nodes=24,
            branching_factor=(2, 7),
            max_depth=2,
            mutually_exclusive_portion=0.5,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        correlation=LowRankCorrelationConfig(rank=16, correlation_scale=0.2),
        std_firing_magnitudes=0.3,
        bias=True,
    ),
    tree_seed=4,
    level_widths=(32, 128, 512),
    # Of the 6.9 active concepts those among the 32, 128 and 512 most frequent: what a level of that width has room for.
    target_l0=(2.4, 4.25, 6.4),
    learning_rate=5e-3,
    n_steps=1500,
    sae_fields={"sparsity_rate": 0.01},
)
"""700 concepts, 507 of them in trees, correlated and of unequal frequency: tells true forests from consistent ones."""

UNKNOWN_L0 = replace(
    STANDARD,
    name="unknown-l0",
    tree_seed=9,
    # Nobody knows the true L0 of real activations, and takes one number.
    target_l0=8.0,
    learning_rate=3e-3,
    n_steps=3000,
    n_stored=200_000,
    sae_fields={},
)
"""Other trees of the same kind, few samples seen 15 times, and an L0 that is not the true one."""


SYNTH_SAE_BENCH_16K = PlantedSetting(
    name="synth-sae-bench-16k",
    version=1,
    model=SyntheticModelConfig(num_features=16_384, hidden_dim=768),
    tree_seed=0,
    level_widths=(256, 1024, 4096),
    target_l0=(8.0, 14.0, 20.0),
    learning_rate=3e-4,
    n_steps=200_000_000 // BATCH_SIZE,
    source="decoderesearch/synth-sae-bench-16k-v1",
)
"""SynthSAEBench-16k (arXiv 2602.14687): 128 roots × 4 × depth 3, 200M samples, width 4,096 at L0 20; asks for a GPU."""


def true_parents(hierarchy: Hierarchy, n_concepts: int) -> torch.Tensor:
    """(n_concepts,) int64, each concept's parent in SAELens' hierarchy; -1 for roots and concepts outside all trees."""
    parents = torch.full((n_concepts,), NO_PARENT)
    below = [(NO_PARENT, root) for root in hierarchy.roots]
    while below:
        parent, node = below.pop()
        concept = node.feature_index
        if concept is None:  # such a node only groups others, which then belong to the concept above it
            concept = parent
        else:
            parents[concept] = parent
        below += [(concept, child) for child in node.children]
    return parents


def recover(
    levels: Sequence[LevelSAE] | SAEStack, forest: FeatureForest, trees: PlantedTrees, n_samples: int = N_SAMPLES
) -> TreeRecovery:
    """Match features, measure absorption and score the forest: any stack of SAEs with any forest.

    Args:
        levels: one SAE per level, coarse to fine, or one object for all (`HierarchicalSAE`). They read the generator's
            activations as they are, so a factor that those were scaled by in training has to be folded.
        forest: who is whose parent among their features.
        trees: the generator, from `PlantedSetting.plant`.
        n_samples: how many to measure on.

    Raises:
        ValueError: if levels, forest and generator do not fit together.
        TypeError: if ``levels`` is a single SAE that has no ``level_sae``, or ``forest`` is no `FeatureForest`.
    """
    saes = level_saes(levels)
    check_fit(saes, forest)
    matches = match_features(saes, trees.samples(n_samples))
    absorption = measure_absorption(saes, matches, trees.true_parents, trees.samples(n_samples))
    return score_recovery(forest, matches, trees.true_parents, absorption)
