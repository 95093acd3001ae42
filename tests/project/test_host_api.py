"""Private names of torch and SAELens that the package uses are still there, and take what they are given."""

import inspect
from typing import Any

import pytest
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer
from torch import nn

PRIVATE: list[tuple[Any, str, list[str], str]] = [
    (nn.Module, "_apply", ["self", "fn", "recurse"], "LevelStack, to keep exact tensors exact under a cast"),
    (SAETrainer, "_train_step", ["self", "sae", "sae_in"], "HierarchicalSAETrainer, to take a step of its own"),
    (SAETrainer, "_checkpoint_if_needed", ["self"], "HierarchicalSAETrainer, to count the step before its checkpoint"),
    (SAETrainer, "_is_logging_step", ["self"], "HierarchicalSAETrainer, to know when a step is logged"),
    (LanguageModelSAETrainingRunner, "_set_sae_metadata", ["self"], "the runner, to check the name W&B will see"),
    (ActivationsStore, "_iterate_raw_dataset", ["self"], "ResumableActivationsStore, to begin at a row"),
    (ActivationsStore, "_iterate_tokenized_sequences", ["self"], "ResumableActivationsStore, to count rows"),
]


@pytest.mark.parametrize(("owner", "name", "parameters", "use"), PRIVATE, ids=lambda value: str(value)[:40])
def test_a_private_method_is_as_it_was(owner: Any, name: str, parameters: list[str], use: str) -> None:
    changed = f"{owner.__module__}.{owner.__name__}.{name} is private and has changed; {use} must follow"
    assert hasattr(owner, name), changed
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters, changed
