"""The forest of a training: what is counted for its updates, and when they happen (HSAE §3.3)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.forest.counts import COACTIVATION_EVERY, follow_frequency, weight_of_batch
from sae_lens_hsae.forest.parents import (
    SimilarityBlock,
    coactivation_similarity,
    conditional_similarity,
    cosine_similarity,
    is_update_due,
    parent_table,
)
from sae_lens_hsae.sae.step_output import Activations
from sae_lens_hsae.sae.structural_loss import Families, families_of


class ForestView(NamedTuple):
    """What training steps need of a parent table, worked out once per table.

    Attributes:
        on_cpu: the table, (d_sae,) int64, on the CPU.
        families: of the table, on its device.
    """

    on_cpu: torch.Tensor
    families: Families


class ForestUpdater(nn.Module):
    """Counts steps and what fires together, and makes a new parent table when one is due.

    Keeps ``n_steps`` () taken so far, ``reparented_share`` () of the last update, and with co-activation similarity one
    ``coactivation_l`` (n_l, n_{l+1}) per level boundary, with the conditional one ``firing_frequency`` (d_sae,) too.

    Attributes:
        n_updates: updates made by this object; a trainer compares it to see that the forest is new.
    """

    n_steps: torch.Tensor
    reparented_share: torch.Tensor
    firing_frequency: torch.Tensor

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        self.n_updates = 0
        self._view: ForestView | None = None
        self._steps: int | None = None
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
        # SAELens' own count is off by one in a resumed run: its trainer saves a checkpoint before it counts the step.
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("reparented_share", torch.zeros((), **kind))
        if cfg.hierarchy_similarity == "conditional":
            self.register_buffer("firing_frequency", torch.zeros(cfg.d_sae, **kind))
        if self._counts:
            for boundary, (n_parents, n_children) in enumerate(pairwise(cfg.levels.widths)):
                self.register_buffer(f"coactivation_{boundary}", torch.zeros(n_parents, n_children, **kind))
        self.register_load_state_dict_post_hook(_forget)

    def forget(self) -> None:
        """Read the buffers and the parent table anew; to be called after anything else has written them."""
        self._view = self._steps = None

    @property
    def _counts(self) -> bool:
        """Whether the similarity is measured on what fires."""
        return self._cfg.parent_rule.is_measured

    def shares_of_tokens(self) -> list[torch.Tensor]:
        """The counted shares that the similarity reads."""
        if not self._counts:
            return []
        coactivation = [self._coactivation(boundary) for boundary in range(len(self._cfg.levels) - 1)]
        return [self.firing_frequency, *coactivation] if self._is_conditional else coactivation

    @property
    def _is_conditional(self) -> bool:
        return self._cfg.hierarchy_similarity == "conditional"

    def _coactivation(self, boundary: int) -> torch.Tensor:
        return self.get_buffer(f"coactivation_{boundary}")

    def steps_taken(self) -> int:
        """``n_steps`` as a number, without asking the device at each step."""
        if self._steps is None:
            self._steps = int(self.n_steps)
        return self._steps

    def count_step(self) -> None:
        """One more step was taken."""
        self._steps = self.steps_taken() + 1
        self.n_steps.add_(1)

    def is_due(self, step: int) -> bool:
        """Whether a training step begins with an update."""
        cfg = self._cfg
        return is_update_due(step, cfg.hierarchy_first_update, cfg.hierarchy_update_every, cfg.freeze_hierarchy_after)

    @torch.no_grad()
    def update(self, parents: torch.Tensor, W_enc: torch.Tensor, W_dec: torch.Tensor) -> None:
        """Make the parent table anew from the parameters as they are.

        Args:
            parents: (d_sae,) int64; written in place.
            W_enc: (d_in, d_sae); W_dec: (d_sae, d_in).
        """
        levels = self._cfg.levels
        similarities = [
            self._similarity(boundary, above, below, W_enc, W_dec)
            for boundary, (above, below) in enumerate(levels.boundaries)
        ]
        table = parent_table(similarities, levels, self._cfg.parent_rule, parents.device)
        children = slice(levels.widths[0], None)
        if len(levels) > 1:
            self.reparented_share.copy_((table[children] != parents[children]).float().mean())
        parents.copy_(table)
        self._view = None
        self.n_updates += 1

    def _similarity(
        self, boundary: int, above: slice, below: slice, W_enc: torch.Tensor, W_dec: torch.Tensor
    ) -> SimilarityBlock:
        match self._cfg.hierarchy_similarity:
            case "encoder":
                return cosine_similarity(W_enc[:, above].T, W_enc[:, below].T)
            case "decoder":
                return cosine_similarity(W_dec[above], W_dec[below])
            case "coactivation":
                return coactivation_similarity(self._coactivation(boundary))
            case "conditional":
                frequency = self.firing_frequency
                return conditional_similarity(self._coactivation(boundary), frequency[above], frequency[below])

    @torch.no_grad()
    def count(self, acts: Activations, batch: int, step: int) -> None:
        """Take a batch into the shares of tokens that the similarity reads, if it is one of those that are counted."""
        if not self._counts or step % COACTIVATION_EVERY:
            return
        weight = weight_of_batch(step)
        if self._is_conditional:
            follow_frequency(self.firing_frequency, acts.times_fired(), batch, weight)
        for boundary, (above, below) in enumerate(self._cfg.levels.boundaries):
            acts.follow_coactivation(self._coactivation(boundary), above, below, weight)

    def view(self, parents: torch.Tensor) -> ForestView:
        """The parent table as training steps read it."""
        if self._view is None or self._view.families.parents.device != parents.device:
            table = parents.clone()
            self._view = ForestView(table.cpu(), families_of(table))
        return self._view


def _forget(updater: nn.Module, _incompatible_keys: object) -> None:
    assert isinstance(updater, ForestUpdater)
    updater.forget()
