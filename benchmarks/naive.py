"""HSAE trained without the package's short cuts: what they save is the difference."""

from __future__ import annotations

import os
from typing import Any

import torch
from typing_extensions import override

from benchmarks.plan import Size
from sae_lens_hsae import HierarchicalTrainingSAE
from sae_lens_hsae.forest.levels import Levels
from sae_lens_hsae.sae.forms import dense_activations_of
from sae_lens_hsae.sae.step_output import Activations


class PlainHSAE(HierarchicalTrainingSAE):
    """Always in the plain dense form, `DenseActivations`."""

    row_devices = ()

    @override
    def _activations(self, sae_in: torch.Tensor, weights: torch.Tensor | None = None) -> Activations:
        return dense_activations_of(self, sae_in, self.activation.rule())


class NaiveHSAE(PlainHSAE):
    """The same with the structural loss as the formula stands."""

    @override
    def _structural_loss(self, acts: Any, weights: torch.Tensor | None) -> torch.Tensor:
        values = acts.values if weights is None else acts.values * weights.sqrt()[:, None]
        return naive_structural_loss(values, self.W_dec, self.parents, self.levels)


def naive_structural_loss(
    acts: torch.Tensor, W_dec: torch.Tensor, parents: torch.Tensor, levels: Levels
) -> torch.Tensor:
    """Σ L_PC with every contribution a_i d_i in memory: tensors of shape (batch, features of a level, d_in).

    Args:
        acts: (batch, n_features); W_dec: (n_features, d_in); parents: (n_features,) int64; levels: of the features.

    Returns:
        A scalar, the mean over the batch.
    """
    total = torch.zeros((), dtype=acts.dtype, device=acts.device)
    for above, below in levels.boundaries:
        n_parents = above.stop - above.start
        own_parent = parents[below] - above.start
        own_parent = torch.where(parents[below] < 0, n_parents, own_parent)  # the unassigned in a place of their own
        of_children = acts[:, below, None] * W_dec[below]
        sums = acts.new_zeros(len(acts), n_parents + 1, W_dec.shape[1]).index_add(1, own_parent, of_children)
        differences = acts[:, above, None] * W_dec[above] - sums[:, :-1]
        has_children = torch.bincount(own_parent, minlength=n_parents + 1)[:-1] > 0
        total = total + (differences.square().sum(-1) * has_children).sum()
    return total / len(acts)


def naive_bytes(size: Size) -> int:
    """About what a step with `naive_structural_loss` needs for the loss alone.

    Forward keeps two tensors per boundary, of the parents; backward holds three of the widest level at once.
    """
    *parents, _ = size.widths
    return 4 * size.batch * size.d_in * (2 * sum(parents) + 3 * size.widths[-1])


def available_bytes(device: str) -> int:
    """Half of the memory of the machine, or what is free on the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
