"""What a step of HSAE is to cost at most, and whether it does."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.contestants import DEFAULTS, ENCODER, HSAE, NO_HIERARCHY, SAELENS, WITHOUT
from benchmarks.plan import LARGE, MEDIUM, Size
from benchmarks.timing import ratio


class Goal(NamedTuple):
    """A ``measure`` of ``ours`` is to be at most ``at_most`` times that of ``against``.

    Attributes:
        ours: an HSAE among the contestants.
        against: the contestant compared with.
        measure: "time" or "peak memory".
        at_most: the multiple.
    """

    ours: str
    against: str
    measure: str
    at_most: float


OF_TIME = {
    Size(384, MEDIUM, 1024, 16): Goal(HSAE, SAELENS, "time", 1 / 3),
    Size(768, LARGE, 1024, 50): Goal(HSAE, SAELENS, "time", 1 / 2),
}
OF_ALL_SIZES = (
    Goal(DEFAULTS, WITHOUT, "time", 1.05),
    Goal(DEFAULTS, WITHOUT, "peak memory", 1.1),
    Goal(HSAE, NO_HIERARCHY, "time", 1.05),
    Goal(HSAE, NO_HIERARCHY, "peak memory", 1.1),
    Goal(HSAE, SAELENS, "peak memory", 1.0),
)


COMPARED = (HSAE, DEFAULTS, WITHOUT, NO_HIERARCHY, SAELENS, ENCODER)
"""The contestants that goals are about, and the floor."""


class Outcome(NamedTuple):
    """What became of a goal: the measured multiple, by time the median over rounds and that of the worst one."""

    goal: Goal
    multiple: float
    slowest: float

    @property
    def missed(self) -> bool:
        return self.slowest > self.goal.at_most


def outcomes(size: Size, contestants: dict[str, dict[str, Any]]) -> list[Outcome]:
    """The goals at a size, of those contestants that were measured."""
    found = []
    for goal in [*([OF_TIME[size]] if size in OF_TIME else []), *OF_ALL_SIZES]:
        ours, other = (contestants.get(name, {}) for name in (goal.ours, goal.against))
        if goal.measure == "time" and "seconds" in ours and "seconds" in other:
            multiple = ratio(ours["seconds"]["rounds"], other["seconds"]["rounds"])
            found.append(Outcome(goal, multiple["median"], multiple["slowest"]))
        peaks = ours.get("peak_bytes"), other.get("peak_bytes")
        if goal.measure == "peak memory" and peaks[0] and peaks[1]:
            found.append(Outcome(goal, peaks[0] / peaks[1], peaks[0] / peaks[1]))
    return found
