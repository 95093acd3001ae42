"""Which sizes are measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16"]

SMALL = (128, 256, 512, 1024)
MEDIUM = (512, 1024, 2048, 4096)
LARGE = (2048, 4096, 8192, 16384)
PAPERS_D_IN = 2304
LARGEST_UPDATE = (PAPERS_D_IN, 1_000_000, 2_000_000)
"""d_in, parents and children of the level boundary that the time and memory of an update are extrapolated to."""


@dataclass(frozen=True)
class Size:
    """One size of a training step.

    Attributes:
        d_in: of the activations.
        widths: features per level, coarse to fine.
        batch: activations per step.
        l0: active features per token and level.
        precision: of matrix products; "bfloat16" is SAELens' ``autocast``.
    """

    d_in: int
    widths: tuple[int, ...]
    batch: int
    l0: int
    precision: Precision = "float32"

    @property
    def n_features(self) -> int:
        return sum(self.widths)

    def __str__(self) -> str:
        widths = "/".join(map(str, self.widths))
        name = f"d {self.d_in}, widths {widths}, batch {self.batch}, L0 {self.l0}"
        return name if self.precision == "float32" else f"{name}, {self.precision}"


@dataclass(frozen=True)
class Plan:
    """All that one run measures.

    Attributes:
        sizes: at which every contestant is measured.
        growth: sizes whose widths grow, at which time and memory are measured.
        evaluation: size of the forest that is evaluated, on each number of ``evaluation_tokens``.
        evaluation_tokens: how many, growing.
        updates: (d_in, parents, children) of hierarchy updates: several of the largest d_in to extrapolate the time,
            and one of many features for the memory; parents · children must be more than one block of similarities
            (`parents.BLOCK` squared).
        waiting: size of the training on the real language model; its d_in is that model's.
        waiting_steps: how many steps are watched.
    """

    sizes: tuple[Size, ...]
    growth: tuple[Size, ...]
    evaluation: Size
    evaluation_tokens: tuple[int, ...]
    updates: tuple[tuple[int, int, int], ...]
    waiting: Size
    waiting_steps: int


GROWTH = tuple(Size(384, (64 * s, 128 * s, 256 * s, 512 * s), 1024, 16) for s in (1, 2, 4, 8))

QUICK = Plan(
    sizes=(Size(384, SMALL, 1024, 16), Size(384, MEDIUM, 1024, 16)),
    growth=GROWTH,
    evaluation=Size(384, MEDIUM, 1024, 16),
    evaluation_tokens=(2048, 4096, 8192, 16384),
    updates=((64, 16384, 32768), (PAPERS_D_IN, 4096, 8192), (PAPERS_D_IN, 6144, 12288), (PAPERS_D_IN, 8192, 16384)),
    waiting=Size(384, SMALL, 1024, 16),
    waiting_steps=48,
)
"""Minutes on two cores."""

FULL = replace(
    QUICK,
    sizes=tuple(
        Size(d_in, widths, batch, l0)
        for (d_in, widths), batch, l0 in product(
            ((384, SMALL), (384, MEDIUM), (768, LARGE)),
            (1024, 4096),
            (16, 50),
        )
    ),
    evaluation_tokens=(8192, 16384, 32768, 65536),
    updates=(*QUICK.updates, (PAPERS_D_IN, 16384, 32768)),
    waiting_steps=200,
)
"""An hour or more on two cores."""


def plan_for(full: bool, device: str) -> Plan:
    """The plan; on a GPU the paper's size is added to it, at three precisions."""
    plan = FULL if full else QUICK
    if not device.startswith("cuda"):
        return plan
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
    papers = tuple(
        Size(PAPERS_D_IN, LARGE, batch, 50, precision) for batch, precision in product((1024, 4096), precisions)
    )
    return replace(plan, sizes=(*plan.sizes, *papers))
