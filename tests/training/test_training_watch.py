"""Training that goes wrong without failing is said aloud, once, with the remedy."""

import re
from itertools import islice
from typing import Any

import pytest
import torch
from host_helpers import runner_config, tiny_config, tiny_dataset, tiny_model
from short_trainings import batches, new_trainer
from small_saes import WIDTHS, at_step

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.sparsity_control import LOG_COEFFICIENT_BOUND, SparsityState
from sae_lens_hsae.training import watch as training_watch
from sae_lens_hsae.training.runner import HierarchicalSAETrainingRunner
from sae_lens_hsae.training.trainer import HierarchicalSAETrainer
from sae_lens_hsae.training.watch import EVERY, FIRST_LOOK, TrainingWatch, is_look_due, variance_explained

TARGETS = (2.0, 2.0, 2.0)


def healthy(**changes: Any) -> dict[str, Any]:
    """Arguments of a look at which nothing is wrong: children spread over all parents, one in 20 features dead."""
    levels = Levels(tuple(WIDTHS))
    parents = torch.full((levels.n_features,), -1)
    for above, below in levels.boundaries:
        parents[below] = above.start + torch.arange(below.stop - below.start) % (above.stop - above.start)
    dead = torch.zeros(levels.n_features, dtype=torch.bool)
    dead[-1] = True
    return {
        "step": FIRST_LOOK,
        "sparsity": SparsityState(torch.zeros(3), torch.tensor([1.7, 2.0, 2.3])),
        "dead": dead,
        "parents": parents,
        "variance_explained": [0.5, 0.6, 0.7],
        **changes,
    }


FAULTS = {
    "level 0, step 1000: 25% of the features are dead; raise target_l0": {"dead": torch.arange(sum(WIDTHS)) < 1},
    "level 1, step 1000: L0 is 3, its target 2; train longer": {
        "sparsity": SparsityState(torch.zeros(3), torch.tensor([2.0, 3.0, 2.0]))
    },
    "level 2, step 1000: λ is at its bound 1e-06, .*; choose a target_l0": {
        "sparsity": SparsityState(torch.tensor([0.0, 0.0, -LOG_COEFFICIENT_BOUND]), torch.full((3,), 2.0))
    },
    "level 2, step 1000: 15 of 15 children are under one parent; set max_children": {
        "parents": torch.cat([healthy()["parents"][:13], torch.where(torch.arange(20) < 15, 5, -1)])
    },
}


@pytest.mark.parametrize("said", FAULTS)
def test_each_fault_is_warned_of_once_with_its_remedy(caplog, said):
    watch = TrainingWatch(Levels(tuple(WIDTHS)), TARGETS)
    watch.look(**healthy())
    assert caplog.messages == []
    for _ in range(3):
        watch.look(**healthy(**FAULTS[said]))
    (message,) = caplog.messages
    assert re.match(said, message)


def test_falling_variance_explained_is_warned_of_but_noise_is_not(caplog):
    watch = TrainingWatch(Levels(tuple(WIDTHS)), TARGETS)
    for i in range(20):
        watch.look(**healthy(variance_explained=[0.5, 0.6 + 0.1 * (-1) ** i, 0.7]))
    assert caplog.messages == []
    for i in range(10):
        watch.look(**healthy(step=2000 + i, variance_explained=[0.5, 0.6, 0.6]))
    (message,) = caplog.messages
    assert re.match(r"level 2, step 2002: variance explained has fallen from 0\.700 to 0\.640; lower lr", message)


def test_looks_come_late_and_seldom():
    due = [step for step in range(1, FIRST_LOOK + 3 * EVERY) if is_look_due(step)]
    assert due == [FIRST_LOOK, FIRST_LOOK + EVERY, FIRST_LOOK + 2 * EVERY]


def test_variance_explained_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    x, out = torch.randn(50, 6, generator=generator) + 3, torch.randn(50, 6, generator=generator) + 3
    residual = sum(((x - out)[i] ** 2).sum() for i in range(50))
    total = sum(((x[i] - x.mean(0)) ** 2).sum() for i in range(50))
    assert variance_explained(x, out) == pytest.approx(float(1 - residual / total), abs=1e-5)


def test_the_trainer_looks(monkeypatch, caplog):
    # A target that the data cannot have: every feature fires on every token or on none.
    monkeypatch.setattr(training_watch, "FIRST_LOOK", 20)
    monkeypatch.setattr(training_watch, "EVERY", 10)
    trainer = new_trainer(HierarchicalSAETrainer, target_l0=[4.0, 9.0, 20.0])
    for batch in islice(batches(), 40):
        trainer.step(batch)
        trainer.n_training_steps += 1
    assert [message for message in caplog.messages if re.match(r"level 2, step 20: L0 is .*, its target 20", message)]
    assert len(caplog.messages) == len(set(caplog.messages))


@pytest.mark.parametrize(
    ("fields", "steps_before", "has_forest", "warned"),
    [
        ({}, 0, False, True),
        ({}, 20, False, False),  # it was trained before, and gets one
        ({}, 0, True, False),
        ({"hierarchy_first_update": 29}, 0, False, False),
        ({"structural_loss_coefficient": 0.0, "perturbation_rate": 0.0}, 0, False, False),
    ],
)
def test_a_training_that_ends_before_its_first_forest_is_warned_of(
    tmp_path, caplog, fields, steps_before, has_forest, warned
):
    cfg = runner_config(tmp_path, sae=tiny_config(**{"hierarchy_first_update": 30} | fields))
    sae = at_step(HierarchicalTrainingSAE(cfg.sae), steps_before)
    sae.parents[-1] = 0 if has_forest else -1
    HierarchicalSAETrainingRunner(cfg, tiny_dataset(), tiny_model(), sae)
    said = r"training ends at step 30, before its first forest \(hierarchy_first_update=30\): .* to about 15$"
    assert [bool(re.match(said, message)) for message in caplog.messages if "forest" in message] == [True] * warned
