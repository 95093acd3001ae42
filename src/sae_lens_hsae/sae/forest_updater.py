"""The forest of a training: what is counted for its updates, and when they happen (HSAE §3.3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from sae_lens_hsae.config import HierarchicalTrainingSAEConfig
from sae_lens_hsae.forest.parents import cosine_similarity, is_update_due, measured_similarities, parent_table
from sae_lens_hsae.sae.recent_firing import COUNT_EVERY, PackedFiring, RecentFiring
from sae_lens_hsae.sae.step_output import Activations
from sae_lens_hsae.sae.structural_loss import Families, families_of


class ForestView(NamedTuple):
    """What training steps need of a parent table, worked out once per table."""

    on_cpu: torch.Tensor  # (d_sae,) int64
    families: Families  # on the table's device


class ForestUpdater(nn.Module):
    """Counts steps and what fires together, and makes a new parent table when one is due.

    Keeps ``n_steps`` () taken so far and ``reparented_share`` () of the last update.
    """

    n_steps: torch.Tensor
    reparented_share: torch.Tensor

    def __init__(self, cfg: HierarchicalTrainingSAEConfig, device: torch.device) -> None:
        super().__init__()
        self._cfg = cfg
        self.n_updates = 0  # by this object; a trainer compares it to see that the forest is new
        self._view: ForestView | None = None
        self._steps: int | None = None
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
        # SAELens' own count is off by one in a resumed run: its trainer saves a checkpoint before it counts the step.
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("reparented_share", torch.zeros((), **kind))
        # Where the similarity is measured on what fires.
        self.recent = RecentFiring(cfg.levels, cfg.target_l0_per_level) if cfg.parent_rule.is_measured else None
        self.register_load_state_dict_post_hook(_forget)

    def forget(self) -> None:
        """Read the buffers and the parent table anew; to be called after anything else has written them."""
        self._view = self._steps = None

    def steps_taken(self) -> int:
        """``n_steps`` as a number, without asking the device at each step."""
        if self._steps is None:
            self._steps = int(self.n_steps)
        return self._steps

    def count_step(self) -> None:
        self._steps = self.steps_taken() + 1
        self.n_steps.add_(1)

    def is_due(self, step: int) -> bool:
        """Whether a training step begins with an update."""
        cfg = self._cfg
        return is_update_due(step, cfg.hierarchy_first_update, cfg.hierarchy_update_every, cfg.freeze_hierarchy_after)

    @torch.no_grad()
    def update(self, parents: torch.Tensor, W_enc: torch.Tensor, W_dec: torch.Tensor) -> None:
        """Make the parent table (d_sae,) anew, in place, from the parameters as they are."""
        levels, rule = self._cfg.levels, self._cfg.parent_rule
        if self.recent is not None:
            similarities = measured_similarities(rule.similarity, self.recent.counts(), levels, parents.device)
        else:
            directions = W_enc.T if rule.similarity == "encoder" else W_dec
            similarities = [
                cosine_similarity(directions[above], directions[below]) for above, below in levels.boundaries
            ]
        table = parent_table(similarities, levels, rule, parents.device)
        children = slice(levels.widths[0], None)
        if len(levels) > 1:
            self.reparented_share.copy_((table[children] != parents[children]).float().mean())
        parents.copy_(table)
        self._view = None
        self.n_updates += 1

    @torch.no_grad()
    def count(
        self, acts: Activations, step: int, good: torch.Tensor | None = None, counted: torch.Tensor | None = None
    ) -> None:
        """Take in what fires on a batch, if a forest is to be made of it; nothing where ``good`` is 0, ().

        Only tokens that are ``counted``, (batch,) bool, tell what fires together; None counts all.
        """
        freeze = self._cfg.freeze_hierarchy_after
        if self.recent is None or step % COUNT_EVERY or (freeze is not None and step > freeze):
            return
        firing = acts.firing(step, counted)
        if isinstance(firing, PackedFiring):
            firing = firing._replace(good=None if good is None else good.clone())
        elif good is not None and not good:
            return
        self.recent.count(firing)

    def view(self, parents: torch.Tensor) -> ForestView:
        if self._view is None or self._view.families.parents.device != parents.device:
            table = parents.clone()
            self._view = ForestView(table.cpu(), families_of(table))
        return self._view


def _forget(updater: nn.Module, _incompatible_keys: object) -> None:
    assert isinstance(updater, ForestUpdater)
    updater.forget()
