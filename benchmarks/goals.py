"""What a step of HSAE is to cost at most, and whether it does."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.contestants import DEFAULTS, ENCODER, HSAE, NO_HIERARCHY, SAELENS
from benchmarks.plan import LARGE, MEDIUM, Size


class Goal(NamedTuple):
    """HSAE's ``measure`` is to be at most ``at_most`` times that of ``against``.

    Attributes:
        against: the contestant compared with.
        measure: "time" or "peak memory".
        at_most: the multiple.
    """

    against: str
    measure: str
    at_most: float


OF_TIME = {
    Size(384, MEDIUM, 1024, 16): Goal(SAELENS, "time", 1 / 3),
    Size(768, LARGE, 1024, 50): Goal(SAELENS, "time", 1 / 2),
}
OF_ALL_SIZES = (
    Goal(NO_HIERARCHY, "time", 1.05),
    Goal(NO_HIERARCHY, "peak memory", 1.1),
    Goal(SAELENS, "peak memory", 1.0),
)


COMPARED = (HSAE, DEFAULTS, NO_HIERARCHY, SAELENS, ENCODER)
"""The contestants that goals are about, the package's defaults, and the floor."""


class Outcome(NamedTuple):
    """What became of a goal: the measured multiple, by time that of the round that was worst for HSAE."""

    goal: Goal
    multiple: float

    @property
    def missed(self) -> bool:
        return self.multiple > self.goal.at_most


def outcomes(size: Size, contestants: dict[str, dict[str, Any]]) -> list[Outcome]:
    """The goals at a size, of those contestants that were measured."""
    goals = [*([OF_TIME[size]] if size in OF_TIME else []), *OF_ALL_SIZES]
    found = []
    for goal in goals:
        other = contestants.get(goal.against, {})
        if goal.measure == "time" and "hsae_as_multiple" in other:
            found.append(Outcome(goal, other["hsae_as_multiple"]["slowest"]))
        peaks = contestants[HSAE].get("peak_bytes"), other.get("peak_bytes")
        if goal.measure == "peak memory" and peaks[0] is not None and peaks[1]:
            found.append(Outcome(goal, peaks[0] / peaks[1]))
    return found
