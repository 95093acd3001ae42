"""Levels of a stack of SAEs, and the flat numbering of their features.

A *level* is one SAE of the stack, not a layer of a network (HSAE §3). Features are numbered flat from
coarse to fine: level 0 owns features ``0 … n_0 - 1``, level 1 the next ``n_1``, and so on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch

NO_PARENT = -1
"""In a parent table: this feature has none."""


@dataclass(frozen=True)
class Levels:
    """Widths of the levels and where each begins in the flat numbering.

    Args:
        widths: number of features of each level, coarse to fine; strictly increasing.

    Raises:
        ValueError: if there is no level, or a width is not a positive whole number larger than the one before.
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", validated_widths(self.widths))

    def __len__(self) -> int:
        return len(self.widths)

    def __iter__(self) -> Iterator[slice]:
        """The flat slice of each level, coarse to fine."""
        return iter(self.slices)

    def __getitem__(self, level: int) -> slice:
        """The flat slice of one level; negative levels count from the finest. Errors as of `number`."""
        return self.slices[self.number(level)]

    def number(self, level: int) -> int:
        """A level's number from 0, the coarsest, where negative ones count from the finest.

        Raises:
            IndexError: if there is no such level.
        """
        if not -len(self) <= level < len(self):
            raise IndexError(f"level {level} does not exist; choose one from 0 to {len(self) - 1}")
        return level % len(self)

    @property
    def n_features(self) -> int:
        """Features of all levels together (``d_sae``)."""
        return sum(self.widths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First flat index of each level, then ``n_features``."""
        return (0, *accumulate(self.widths))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in pairwise(self.offsets))

    @property
    def boundaries(self) -> Iterator[tuple[slice, slice]]:
        """Pairs (parents' slice, children's slice) of adjacent levels, coarse to fine."""
        return pairwise(self.slices)

    def level_of(self, features: torch.Tensor) -> torch.Tensor:
        """Level of each flat feature index, same shape as ``features``; no range check."""
        starts = torch.tensor(self.offsets[1:], device=features.device)
        return torch.bucketize(features, starts, right=True)

    def name(self, feature: int) -> str:
        """A feature's level and its number there, as the explorer's links write them: ``2/17``; no range check."""
        level = bisect_right(self.offsets[1:], feature)
        return f"{level}/{feature - self.offsets[level]}"

    def named(self, name: str) -> int:
        """Flat index of the feature that `name` calls so.

        Raises:
            IndexError: if there is no such feature.
            ValueError: if it is no name.
        """
        level, feature = named_parts(name)
        if feature >= self.widths[self.number(level)]:
            raise IndexError(f"feature {feature} is not in level {level}, which has {self.widths[level]} features")
        return self.offsets[level] + feature

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views of the last dimension, one per level: (…, n_features) → L of (…, n_l)."""
        return torch.split(values, list(self.widths), dim=-1)


def named_parts(name: str) -> tuple[int, int]:
    """Level and number that a feature's name holds, such as ``2/17``; a ValueError if it is no name."""
    level, slash, feature = name.partition("/")
    if not (slash and level.isdecimal() and feature.isdecimal()):
        raise ValueError(f"feature {name!r} is no name; write level/number, such as '0/41', or the flat index")
    return int(level), int(feature)


def children_by_parent(parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All children of a parent table (n_features,): flat indices (n_edges,), and offsets (n_features + 1,).

    The children of feature f stand at ``offsets[f] : offsets[f + 1]``, ascending.
    """
    n_children = torch.bincount(parents[parents != NO_PARENT], minlength=len(parents))
    children = parents.argsort(stable=True)[len(parents) - int(n_children.sum()) :]
    return children, torch.cat([n_children.new_zeros(1), n_children.cumsum(0)])


def validated_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """``widths`` as a tuple of ints, or a ValueError that says what is wrong and how to mend it."""
    example = "give the levels coarse to fine, for example level_widths=[2048, 4096, 8192, 16384]"
    if not widths:
        raise ValueError(f"level_widths={list(widths)} is empty; {example}")
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(
                f"level_widths={list(widths)} holds {width!r}, which is not a positive whole number; {example}"
            )
    for coarse, fine in pairwise(widths):
        if fine <= coarse:
            raise ValueError(
                f"level_widths={list(widths)} is not strictly increasing ({coarse} is followed by {fine}); {example}"
            )
    return tuple(widths)
