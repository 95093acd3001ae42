"""What fired on the last tokens of a training, of which its forest is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sae_lens_hsae.forest.counts import Counts, Firing, as_array
from sae_lens_hsae.forest.levels import Levels

COUNT_EVERY = 4
"""Steps between two batches that are counted."""

FIRINGS = 256
"""Of a feature that fires as often as its level's mean, on the tokens that are kept."""

MOST_PACKED = 2**30
"""Bytes of packed batches on a device; with more of them the host waits, and takes out what fired."""

STATE = ("firing_steps", "firing_sizes", "firing_times", "firing_tokens")
"""What a checkpoint holds of `RecentFiring`, as large as what was counted."""


class PackedFiring(NamedTuple):
    """A `Firing` still on its device: one bit for each feature and token, so that its shape does not depend on them."""

    step: int  # of the training
    n_tokens: int  # of the batch
    bits: torch.Tensor  # (n_features, ⌈n_tokens / 8⌉) uint8
    good: torch.Tensor | None = None  # 0 if the batch turned out to be bad, (); None where it is known to be good

    @classmethod
    def of(cls, fired: torch.Tensor, step: int) -> PackedFiring:
        """Of whether each feature fires on each token, (n_features, n_tokens) bool."""
        n_features, n_tokens = fired.shape
        whole = nn.functional.pad(fired.to(torch.uint8), (0, -n_tokens % 8)).view(n_features, -1, 8)
        places = torch.arange(8, device=fired.device, dtype=torch.uint8)
        return cls(step, n_tokens, whole.bitwise_left_shift_(places).sum(-1, dtype=torch.uint8))

    def unpacked(self) -> Firing:
        bits = as_array(self.bits)
        places = np.flatnonzero(bits)  # few of the bytes: what fires is sparse
        byte, bit = np.nonzero(np.unpackbits(bits.reshape(-1, 1)[places], axis=1, bitorder="little"))
        features, eighth = np.divmod(places[byte], bits.shape[1])
        times = np.bincount(features, minlength=len(bits)).astype(np.int32)
        return Firing(self.step, self.n_tokens, times, (8 * eighth + bit).astype(np.min_scalar_type(self.n_tokens)))


def tokens_kept(levels: Levels, target_l0: Sequence[float]) -> int:
    """Tokens on which features of the sparsest level fire `FIRINGS` times, in the mean; ``target_l0`` is (L,)."""
    return round(FIRINGS * max(n / l0 for n, l0 in zip(levels.widths, target_l0, strict=True)))


class RecentFiring(nn.Module):
    """What fired on the last tokens that were counted: the newest third of a training, up to ``tokens_kept``.

    A checkpoint holds it as ``firing_steps`` (n_batches,), ``firing_sizes`` (n_batches,), ``firing_times`` (n_batches,
    n_features) and ``firing_tokens`` (n,), the fields of the batches' `Firing`.
    """

    def __init__(self, levels: Levels, target_l0: Sequence[float]) -> None:
        super().__init__()
        self._levels = levels
        self.tokens_kept = tokens_kept(levels, target_l0)
        # Early in a training far more fires on a token.
        self._most_entries = 2 * self.tokens_kept * sum(target_l0)
        self.batches: list[Firing | PackedFiring] = []
        self._shared_until = -1
        self.register_state_dict_post_hook(_write)
        self.register_load_state_dict_pre_hook(_read)

    def count(self, batch: Firing | PackedFiring) -> None:
        """Take a batch in, and leave out those that it makes old."""
        self.batches.append(batch)
        packed = sum(each.bits.numel() for each in self.batches if isinstance(each, PackedFiring))
        self._keep(self._unpacked_newest_first() if packed > MOST_PACKED else reversed(self.batches))

    def share(self, told_by_all: Callable[[list[Firing]], Iterable[list[Firing]]], n_processes: int) -> None:
        """Take in what other processes counted; ``told_by_all`` gives each one's message, of this one's."""
        batches = self.unpacked()
        shared, own = batches[: self._shared], batches[self._shared :]
        # All processes together keep no more than one would.
        n_needed = math.ceil(self.tokens_kept / n_processes)
        newer = [sum(batch.n_tokens for batch in own[place + 1 :]) for place in range(len(own))]
        told = told_by_all([batch for batch, n_tokens in zip(own, newer, strict=True) if n_tokens < n_needed])
        new = [batch for of_process in told for batch in of_process]
        self.batches = [*shared, *sorted(new, key=lambda batch: batch.step)]
        self._keep(reversed(self.batches))
        self._shared_until = max((batch.step for batch in self.batches), default=-1)

    def unpacked(self) -> list[Firing]:
        """The good batches, oldest first."""
        return self._keep(self._unpacked_newest_first())

    def counts(self) -> Counts:
        return Counts(self.unpacked(), self._levels)

    def _keep(self, newest_first: Iterable[Firing | PackedFiring]) -> list[Any]:
        """Keep whole steps, the newest ones, and of packed batches as many as if it were known how much fired."""
        kept: list[Firing | PackedFiring] = []
        n_tokens = n_entries = 0
        for batch in newest_first:
            is_enough = n_tokens >= self.tokens_kept or n_entries >= self._most_entries
            is_old = 3 * batch.step < 2 * self.batches[-1].step
            if kept and batch.step < kept[-1].step and (is_enough or is_old):
                break
            kept.append(batch)
            n_tokens += batch.n_tokens
            n_entries += len(batch.tokens) if isinstance(batch, Firing) else 0
        self.batches = kept[::-1]
        return self.batches

    def _unpacked_newest_first(self) -> Iterator[Firing]:
        """The good batches, each unpacked when it is asked for."""
        for batch in reversed(self.batches):
            if isinstance(batch, Firing):
                yield batch
            elif batch.good is None or batch.good:
                yield batch.unpacked()

    @property
    def _shared(self) -> int:
        """How many of the batches, the first ones, all processes have."""
        return sum(batch.step <= self._shared_until for batch in self.batches)


def _write(recent: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(recent, RecentFiring)
    batches = recent.unpacked()
    times = [batch.times for batch in batches] or [np.zeros((0, recent._levels.n_features), np.int32)]
    tokens = [batch.tokens.astype(np.int32) for batch in batches] or [np.zeros(0, np.int32)]
    steps, sizes = (torch.tensor([getattr(each, of) for each in batches]).long() for of in ("step", "n_tokens"))
    tensors = (steps, sizes, torch.from_numpy(np.vstack(times)), torch.from_numpy(np.concatenate(tokens)))
    state_dict.update({prefix + name: tensor for name, tensor in zip(STATE, tensors, strict=True)})


def _read(
    recent: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    missing_keys: list[str],
    *_: Any,
) -> None:
    assert isinstance(recent, RecentFiring)
    if missing := [prefix + name for name in STATE if prefix + name not in state_dict]:
        missing_keys.extend(missing)
        return
    steps, sizes, times, tokens = (as_array(state_dict.pop(prefix + name)) for name in STATE)
    ends = times.sum(1).cumsum()[:-1]
    recent.batches = [
        Firing(int(step), int(size), of_batch, own.astype(np.min_scalar_type(size)))
        for step, size, of_batch, own in zip(steps, sizes, times, np.split(tokens, ends)[: len(steps)], strict=True)
    ]
    recent._shared_until = int(steps.max(initial=-1))
