"""The contexts that are kept per feature: a fixed number of slots, filled from a stream.

Slots of a feature, in this order:

- ``n_top`` strongest contexts,
- ``n_sampled`` contexts, one from each band of the quantiles of a context's peak,
- ``n_counterexamples`` where its parent fires without it, and as many where it fires without its parent.

A slot holds a window of tokens around the peak with the activations of the feature and of its parent; for the first two
kinds also those of every child, which are stored with the child.
"""

from __future__ import annotations

import torch

from sae_lens_hsae.forest import NO_PARENT, FeatureForest
from sae_lens_hsae.interpret.feature_cache.format import DashboardSettings
from sae_lens_hsae.interpret.feature_cache.statistics import N_BINS, Firing, bin_of


class ContextSlots:
    """Work per context is over all features at once; only features whose slots change have a window copied."""

    def __init__(self, forest: FeatureForest, settings: DashboardSettings, device: torch.device) -> None:
        n, slots, window = forest.n_features, settings.n_slots, settings.window
        self._settings = settings
        self._parents = forest.parents.to(device)
        edges = forest.edges().to(device)
        self._children = edges[edges[:, 0].argsort(stable=True), 1]
        self._n_children = forest.n_children.to(device)
        self._first_child = self._n_children.cumsum(0) - self._n_children
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._peak = torch.zeros(n, slots, device=device)
        self._peak_position = torch.zeros(n, slots, dtype=torch.int16, device=device)
        self._number = torch.full((n, slots), -1, dtype=torch.int64, device=device)
        self._tokens = torch.full((n, slots, window), -1, dtype=torch.int32, device=device)
        # bfloat16 has the range of float32, and its 0.4 % are finer than any shade.
        kind = {"dtype": torch.bfloat16, "device": device}
        self._own = torch.zeros(n, slots, window, **kind)
        self._of_parent = torch.zeros(n, slots, window, **kind)
        self._in_parents_slots = torch.zeros(n, settings.n_family_slots, window, **kind)
        self._peak_histogram = torch.zeros(n, N_BINS, dtype=torch.int32, device=device)
        self._n_in_band = torch.zeros(n, settings.n_sampled, dtype=torch.int32, device=device)

    def add(self, firing: Firing, token_ids: torch.Tensor, first_number: int) -> None:
        """A chunk of contexts: ``token_ids`` (contexts, length), numbered in the stream from ``first_number``."""
        shape = (*token_ids.shape, -1)
        own, of_parent = firing.acts.view(shape), firing.of_parent.view(shape)
        assigned = self._parents != NO_PARENT
        top, _, missing, alone = self._settings.kinds
        strongest = own.max(1)
        parent_alone = (of_parent * (own == 0)).max(1)
        child_alone = (own * ((of_parent == 0) & assigned)).max(1)
        for i, tokens in enumerate(token_ids):
            number = first_number + i
            for slots, (peaks, positions) in ((top, strongest), (missing, parent_alone), (alone, child_alone)):
                features, slot = self._weaker_than(peaks[i], slots)
                self._write(number, tokens, own[i], features, slot, peaks[i], positions[i])
            features, slot = self._sample(strongest[0][i])
            self._write(number, tokens, own[i], features, slot, strongest[0][i], strongest[1][i])

    def _weaker_than(self, peaks: torch.Tensor, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Features whose weakest slot of a kind is weaker than this context's peak (features,), and that slot."""
        if slots.start == slots.stop:
            return peaks.new_zeros(0, dtype=torch.int64), peaks.new_zeros(0, dtype=torch.int64)
        weakest, slot = self._peak[:, slots].min(1)
        features = (peaks > weakest).nonzero().flatten()
        return features, slot[features] + slots.start

    def _sample(self, peaks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features that take this context as the sample of its band, and the band's slot.

        A band's quantiles are those of the contexts so far, so that early ones are rough; within a band every context
        is equally likely to be the one that stays.
        """
        n_bands = self._settings.n_sampled
        draws = torch.rand(len(peaks), generator=self._generator).to(peaks.device)
        features = (peaks > 0).nonzero().flatten()
        if not n_bands:
            return features[:0], features[:0]
        bins = bin_of(peaks[features])
        self._peak_histogram[features, bins] += 1
        histogram = self._peak_histogram[features]
        in_bin = histogram.gather(1, bins[:, None])[:, 0]
        up_to = histogram.cumsum(1).gather(1, bins[:, None])[:, 0]
        rank = (up_to - in_bin / 2) / histogram.sum(1)
        band = (rank * n_bands).long().clamp(max=n_bands - 1)
        self._n_in_band[features, band] += 1
        chosen = draws[features] * self._n_in_band[features, band] < 1
        return features[chosen], band[chosen] + self._settings.kinds[1].start

    def _write(
        self,
        number: int,
        tokens: torch.Tensor,
        acts: torch.Tensor,
        features: torch.Tensor,
        slots: torch.Tensor,
        peaks: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        """Put a context (length,), (length, features) into one slot of each of some features."""
        window, length = self._settings.window, len(tokens)
        start = (positions[features] - window // 2).clamp(0, max(length - window, 0))
        where = start[:, None] + torch.arange(window, device=start.device)
        inside, where = where < length, where.clamp(max=length - 1)
        self._number[features, slots] = number
        self._peak[features, slots] = peaks[features]
        self._peak_position[features, slots] = (positions[features] - start).short()
        self._tokens[features, slots] = torch.where(inside, tokens[where], -1).int()

        def windows(of: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
            return (acts[where[which], of[:, None]] * inside[which]).bfloat16()

        every = torch.arange(len(features), device=features.device)
        parents = self._parents[features]
        self._own[features, slots] = windows(features, every)
        self._of_parent[features, slots] = windows(parents.clamp(min=0), every) * (parents >= 0)[:, None]

        family = slots < self._settings.n_family_slots
        counts = self._n_children[features] * family
        which = every.repeat_interleave(counts)
        within = torch.arange(len(which), device=which.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        children = self._children[self._first_child[features][which] + within]
        self._in_parents_slots[children, slots[which]] = windows(children, which)

    def result(self) -> dict[str, torch.Tensor]:
        """The slots, each kind strongest first, empty ones last; see ``Dashboards`` for names and shapes."""
        order = torch.cat(
            [
                self._peak[:, kind].argsort(dim=1, descending=True, stable=True) + kind.start
                for kind in self._settings.kinds
            ],
            dim=1,
        )
        parents_order = order[self._parents.clamp(min=0)][:, : self._settings.n_family_slots]
        return {
            "context_numbers": self._number.gather(1, order).cpu(),
            "peaks": self._peak.gather(1, order).cpu(),
            "peak_positions": self._peak_position.gather(1, order).cpu(),
            "token_ids": _rows(self._tokens, order).cpu(),
            "activations": _rows(self._own, order).cpu(),
            "parent_activations": _rows(self._of_parent, order).cpu(),
            "activations_on_parent": _rows(self._in_parents_slots, parents_order).cpu(),
        }


def _rows(table: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return table.gather(1, order[..., None].expand(-1, -1, table.shape[2]))
