"""A stack of levels whose forest is updated while it is trained: what is counted for that, and when it happens."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from sae_lens_hsae.forest.counts import COACTIVATION_EVERY, follow_frequency, weight_of_batch
from sae_lens_hsae.forest.parents import (
    MEASURED_ON_ACTIVATIONS,
    SimilarityBlock,
    coactivation_similarity,
    conditional_similarity,
    cosine_similarity,
    is_update_due,
    parent_table,
)
from sae_lens_hsae.sae.inference import LevelStack
from sae_lens_hsae.sae.step_output import Activations
from sae_lens_hsae.sae.structural_loss import Families, families_of


class ForestView(NamedTuple):
    """What training steps need of a parent table, worked out once per table."""

    table: torch.Tensor
    version: int
    on_cpu: torch.Tensor
    families: Families


class UpdatedForest(LevelStack):
    """Mixed in before SAELens' training class.

    Keeps ``n_steps`` () taken so far, ``reparented_share`` () of the last hierarchy update, and with co-activation
    similarity one ``coactivation_l`` (n_l, n_{l+1}) per level boundary, with the conditional one ``firing_frequency``
    (d_sae,) too.
    """

    n_steps: torch.Tensor
    reparented_share: torch.Tensor
    firing_frequency: torch.Tensor
    _forest_view: ForestView | None = None
    _counted: tuple[torch.Tensor, int, int] | None = None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        kind: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        # SAELens' own count is off by one in a resumed run: its trainer saves a checkpoint before it counts the step.
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device=self.device))
        self.register_buffer("reparented_share", torch.zeros((), **kind))
        if self.cfg.hierarchy_similarity == "conditional":
            self.register_buffer("firing_frequency", torch.zeros(self.cfg.d_sae, **kind))
        if self.cfg.hierarchy_similarity in MEASURED_ON_ACTIVATIONS:
            for boundary, (n_parents, n_children) in enumerate(pairwise(self.levels.widths)):
                self.register_buffer(f"coactivation_{boundary}", torch.zeros(n_parents, n_children, **kind))

    @property
    @override
    def exact_tensors(self) -> tuple[str, ...]:
        return (*super().exact_tensors, "n_steps", "reparented_share", *self._names_of_shares())

    def _names_of_shares(self) -> list[str]:
        counted = ("coactivation_", "firing_frequency")
        return [name for name, _ in self.named_buffers() if name.startswith(counted)]

    def shares_of_tokens(self) -> list[torch.Tensor]:
        """The counted shares that the similarity reads."""
        return [self.get_buffer(name) for name in self._names_of_shares()]

    def steps_taken(self) -> int:
        """``n_steps`` as a number, asked of the device only where something else than `count_step` has written it."""
        buffer = self.n_steps
        if self._counted is None or self._counted[0] is not buffer or self._counted[1] != buffer._version:
            self._counted = (buffer, buffer._version, int(buffer))
        return self._counted[2]

    def count_step(self) -> None:
        """One more step was taken."""
        before = self.steps_taken()
        self.n_steps.add_(1)
        self._counted = (self.n_steps, self.n_steps._version, before + 1)

    def update_is_due(self, step: int) -> bool:
        """Whether a training step begins with a hierarchy update."""
        cfg = self.cfg
        schedule = (cfg.hierarchy_first_update, cfg.hierarchy_update_every, cfg.hierarchy_update_growth)
        return is_update_due(step, *schedule, cfg.freeze_hierarchy_after)

    @torch.no_grad()
    def update_hierarchy(self) -> None:
        """Recompute the forest from the parameters as they are (HSAE §3.3)."""
        before = self.parents.clone()
        similarities = [
            self._similarity(boundary, above, below) for boundary, (above, below) in enumerate(self.levels.boundaries)
        ]
        self.parents.copy_(
            parent_table(
                similarities,
                self.levels,
                self.cfg.unassigned_fraction,
                self.cfg.max_children,
                self.cfg.minimum_similarity,
                self.parents.device,
            )
        )
        children = self.parents[self.levels.widths[0] :]
        if len(children):
            self.reparented_share.copy_((children != before[self.levels.widths[0] :]).float().mean())

    def _similarity(self, boundary: int, above: slice, below: slice) -> SimilarityBlock:
        if self.cfg.hierarchy_similarity == "encoder":
            return cosine_similarity(self.W_enc[:, above].T, self.W_enc[:, below].T)
        if self.cfg.hierarchy_similarity == "decoder":
            return cosine_similarity(self.W_dec[above], self.W_dec[below])
        coactivation = self.get_buffer(f"coactivation_{boundary}")
        if self.cfg.hierarchy_similarity == "coactivation":
            return coactivation_similarity(coactivation)
        frequency = self.firing_frequency
        return conditional_similarity(coactivation, frequency[above], frequency[below])

    @torch.no_grad()
    def count_coactivation(self, acts: Activations, batch: int, step: int) -> None:
        """Take a batch into the shares of tokens that the similarity reads, if it is one of those that are counted."""
        if self.cfg.hierarchy_similarity not in MEASURED_ON_ACTIVATIONS or step % COACTIVATION_EVERY:
            return
        weight = weight_of_batch(step)
        if self.cfg.hierarchy_similarity == "conditional":
            follow_frequency(self.firing_frequency, acts.times_fired(), batch, weight)
        for boundary, (above, below) in enumerate(self.levels.boundaries):
            acts.follow_coactivation(self.get_buffer(f"coactivation_{boundary}"), above, below, weight)

    def forest_view(self) -> ForestView:
        """The parent table and its families, as training steps read them."""
        table, view = self.parents, self._forest_view
        if view is None or view.table is not table or view.version != table._version:
            view = ForestView(table, table._version, table.to("cpu", copy=True), families_of(table))
            self._forest_view = view
        return view

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        self._forest_view = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy's tensors count their versions anew, and the view would pass for that of another table.
        return {**self.__dict__, "_forest_view": None, "_counted": None, "late_checks": None}
