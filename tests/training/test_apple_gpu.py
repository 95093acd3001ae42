"""What an Apple GPU cannot hold: it has no float64, and an SAE is made on the CPU before it is moved there."""

from typing import Any

import pytest
import torch
from short_trainings import batches, new_trainer, take_steps
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_lens_hsae import HierarchicalSAETrainer


class NoFloat64(TorchDispatchMode):
    """Refuses operations that make numbers in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.dtype != torch.float64 for tensor in made), f"{func} makes float64"
        return result


@pytest.mark.parametrize("activation", ["jumprelu", "batchtopk"])
@pytest.mark.parametrize("dead_feature_loss", ["auxiliary", "ghost"])
def test_a_training_in_float32_has_no_float64(activation, dead_feature_loss):
    fields = {"level_activation": activation, "dead_feature_loss": dead_feature_loss, "outlier_limit": 3.0}
    trainer = new_trainer(HierarchicalSAETrainer, hierarchy_similarity="conditional", minimum_similarity=0.1, **fields)
    data = batches()
    with NoFloat64():
        take_steps(trainer, data, 30)
    assert trainer.sae.forest_updater.n_updates
    state = {**trainer.sae.state_dict(), **dict(trainer.sae.named_buffers())}
    assert all(tensor.dtype != torch.float64 for tensor in state.values())
