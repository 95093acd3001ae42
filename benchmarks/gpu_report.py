"""What a run on a GPU measured, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import HSAE, NO_HIERARCHY, SAELENS
from benchmarks.report import milliseconds, table

GOAL_RATIO = 0.5
GOAL_SPEED = 270_000
"""Activations per second."""
GOAL_MEMORY = 1.0
GOALS_OF_HIERARCHY = (1.05, 1.1)
"""Time and peak memory, on against off."""


def markdown(record: dict[str, Any]) -> str:
    """All that the record has so far."""
    parts = [_machine(record), _tests(record), *map(_step, record["steps"])]
    if record["decoding"]:
        parts.append(_decoding(record["decoding"]))
    if record["left_out"]:
        parts.append(f"Left out for want of time: {'; '.join(record['left_out'])}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(record: dict[str, Any]) -> str:
    on = record["machine"]
    changed = ", with uncommitted changes" if on["uncommitted_changes"] else ""
    versions = ", ".join(
        f"{name} {on[name]}" for name in ("python", "torch", "cuda", "triton", "sae-lens", "sae-lens-hsae") if on[name]
    )
    return (
        f"# On a GPU\n\n{on['gpu'] or on['cpu']}; {versions}; commit {on['commit'] or 'unknown'}{changed}; "
        f"{on['date']}. A copy moves {on['copied_bytes_per_second'] / 1e9:,.0f} GB/s. {record['rounds']} rounds in "
        f"turns: medians, with the least and the most."
    )


def _tests(record: dict[str, Any]) -> str:
    tests = record["tests"]
    if tests is None:
        return ""
    return f"## Tests marked gpu: {'passed' if tests['passed'] else '**failed**'}\n\n```\n{tests['told']}\n```"


def _step(result: dict[str, Any]) -> str:
    heads = ["", "ms per step", "HSAE takes (slowest round)", "activations/s", "peak MB", "host waits", "L0 per level"]
    lines = [_contestant(name, own) for name, own in result["contestants"].items()]
    return f"## A step at {result['size']}\n\n{table(heads, lines)}\n\n{_goals(result['contestants'])}"


def _contestant(name: str, own: dict[str, Any]) -> list[str]:
    if "left_out" in own:
        return [name, own["left_out"], "", "", "", "", ""]
    multiple = own["hsae_as_multiple"]
    return [
        name,
        milliseconds(own["seconds"]),
        "" if name == HSAE else f"{multiple['median']:.2f}× ({multiple['slowest']:.2f}×)",
        f"{own['activations_per_second']:,.0f}",
        f"{own['peak_bytes'] / 1e6:,.0f}",
        "" if own["waits_per_step"] is None else str(own["waits_per_step"]),
        " ".join(f"{l0:.1f}" for l0 in own.get("l0", [])),
    ]


def _goals(contestants: dict[str, dict[str, Any]]) -> str:
    ours = contestants[HSAE]
    if "left_out" in ours:
        return ""
    told = [_told("activations per second", ours["activations_per_second"], GOAL_SPEED, at_least=True)]
    for name, of_time, of_memory in ((SAELENS, GOAL_RATIO, GOAL_MEMORY), (NO_HIERARCHY, *GOALS_OF_HIERARCHY)):
        other = contestants[name]
        if "left_out" in other:
            continue
        told.append(_told(f"time against {name}", other["hsae_as_multiple"]["slowest"], of_time))
        if other["peak_bytes"] > 0:
            told.append(_told(f"peak memory against {name}", ours["peak_bytes"] / other["peak_bytes"], of_memory))
    return f"Goals, times by the slowest round: {'; '.join(told)}."


def _told(what: str, measured: float, goal: float, *, at_least: bool = False) -> str:
    missed = measured < goal if at_least else measured > goal
    number = f"{measured:,.0f}" if at_least else f"{measured:.2f}×"
    bound = f"at least {goal:,.0f}" if at_least else f"at most {goal:.2f}×"
    return f"{what} {bound}: {number}" + (", **missed**" if missed else "")


def _decoding(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            f"{row['n_features']:,} ({row['share_active']:.2%} active)",
            name,
            milliseconds(own["seconds"]),
            f"{own['product_as_multiple']['median']:.2f}×",
        ]
        for row in rows
        for name, own in row["ways"].items()
    ]
    heads = ["features of the level", "way", "ms, with both gradients", "the product takes"]
    return f"## Decoding one level ({rows[0]['precision']})\n\n{table(heads, lines)}"
