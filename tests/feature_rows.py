"""A step in the GPU's form beside the plain one, and a watch for what a GPU's host would wait for."""

from typing import Any

import torch
from small_saes import D_IN, make_sae
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.sae.dense_activations import DenseActivations
from sae_lens_hsae.sae.gpu_step.feature_rows import FeatureRows
from sae_lens_hsae.sae.perturbation import Replacement, draw_replaced, replacements
from sae_lens_hsae.sae.structural_loss import families_of

BATCH = 24
KINDS: dict[str, dict[str, Any]] = {
    "jumprelu": {},
    "without gradient to the input": {"jumprelu_ste_to_input": False},
    "input as it is": {"apply_b_dec_to_input": False},
    "batchtopk": {"level_activation": "batchtopk"},
}


def activations_of(sae: HierarchicalTrainingSAE, x: torch.Tensor) -> FeatureRows:
    centre, bias = sae.centre_and_bias()
    return FeatureRows(sae.W_enc, bias, x - centre, sae.activation.rule(), sae.levels)


def plain_activations_of(sae: HierarchicalTrainingSAE, x: torch.Tensor) -> DenseActivations:
    hidden_pre = sae.hidden_pre(x)
    return DenseActivations(*_swapped(sae.activation.rule().of_all(hidden_pre), hidden_pre), sae.levels)


def _swapped(activated: Any, hidden_pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return activated.values, hidden_pre, activated.fired


def losses(sae: HierarchicalTrainingSAE, x: torch.Tensor, acts: DenseActivations | FeatureRows) -> torch.Tensor:
    """What a step makes of activations: perturbed errors and L0 of all levels, and the structural loss, (2 L + 1,)."""
    parents = sae.parents.cpu()
    drawn = replacements(draw_replaced(parents, 0.6, 0, 3), parents, sae.levels)
    assert all(len(change.features) for change in drawn)
    replaced = [Replacement(*(tensor.to(x.device) for tensor in change)) for change in drawn]
    errors = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32) - acts.reconstruct(
        sae.W_dec, sae.b_dec, replaced
    )
    structural = acts.structural_loss(sae.W_dec, families_of(sae.parents))
    return torch.cat([errors.square().sum(-1).mean(-1), acts.l0(), structural[None]])


def weighted_gradients(sae: HierarchicalTrainingSAE, terms: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(0.3, 1.7, len(terms), dtype=terms.dtype, device=terms.device)
    sae.zero_grad()
    (weights * terms).sum().backward()
    return {name: parameter.grad for name, parameter in sae.named_parameters() if parameter.grad is not None}


def tokens(dtype: torch.dtype = torch.float64, seed: int = 7, n: int = BATCH) -> torch.Tensor:
    return (2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def plain_in_float64(kind: str, n: int) -> tuple[HierarchicalTrainingSAE, torch.Tensor, torch.Tensor, Any]:
    """An SAE, tokens, and what the plain form makes of them: losses and their gradients."""
    sae, x = make_sae(dtype="float64", **KINDS[kind]), tokens(n=n)
    expected = losses(sae, x, plain_activations_of(sae, x))
    return sae, x, expected, weighted_gradients(sae, expected)


class Watched(TorchDispatchMode):
    """Notes each operation with the shapes of its results, and refuses those for which a GPU's host would wait.

    Those are the ones that read a number, or whose result has a shape that depends on numbers.
    """

    WAITING = (
        "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount",
        "unique", "_unique2", "unique_consecutive", "repeat_interleave",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{func} waits for the device"
        by_mask = [
            index
            for index in (args[1] if name.startswith("index") and isinstance(args[1], list) else [])
            if index is not None and index.dtype == torch.bool
        ]
        assert not by_mask, f"{func} picks by a mask, and waits for the device"
        result = func(*args, **(kwargs or {}))
        self.seen.append((str(func), [leaf.shape for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]))
        return result
