"""Small training SAEs with random weights and forests, and what tests do with them."""

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_lens_hsae import HierarchicalTrainingSAE, HierarchicalTrainingSAEConfig
from sae_lens_hsae.presets import PAPER
from sae_lens_hsae.sae.inference import own_name

WIDTHS = [4, 9, 20]
D_IN = 8


def make_config(**overrides: Any) -> HierarchicalTrainingSAEConfig:
    fields: dict[str, Any] = {"d_in": D_IN, "level_widths": WIDTHS, "target_l0": 2.0, **PAPER} | overrides
    fields.setdefault("d_sae", sum(fields["level_widths"]))
    return HierarchicalTrainingSAEConfig(**fields)


def make_sae(seed: int = 0, **overrides: Any) -> HierarchicalTrainingSAE:
    """A training SAE with random tensors, decoder rows of unit norm, and a random forest with unassigned features."""
    sae = HierarchicalTrainingSAE(make_config(**overrides))
    generator = torch.Generator().manual_seed(seed)

    def random(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        parameter = getattr(sae, name)
        parameter.data = random(parameter) * (1.0 if "W" in name else 0.3)
    sae.threshold.data = random(sae.threshold).abs()
    sae.project_parameters()
    for above, below in sae.levels.boundaries:
        n_above, n_below = above.stop - above.start, below.stop - below.start
        chosen = above.start + torch.randint(n_above, (n_below,), generator=generator)
        chosen[torch.rand(n_below, generator=generator) < 0.2] = -1
        sae.parents[below] = chosen
    return sae


def at_step(sae: HierarchicalTrainingSAE, step: int) -> HierarchicalTrainingSAE:
    """Have the next training step be number ``step``."""
    sae.forest_updater.n_steps.fill_(step)
    sae.forest_updater.forget()
    return sae


def tensors_of(sae: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and what else a checkpoint holds by their own names, whichever part keeps them."""
    return {own_name(name): tensor for name, tensor in sae.state_dict(keep_vars=True).items()}


def step_input(x: torch.Tensor, dead: torch.Tensor | None = None, logging: bool = False) -> TrainStepInput:
    return TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=logging)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {tensor.data_ptr() for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return made
