"""The results as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.contestants import ENCODER, STOCK
from benchmarks.growth import BYTES_PER_CHILD


def markdown(record: dict[str, Any]) -> str:
    """All parts that the record has so far."""
    parts = [_machine(record)]
    parts += [_size(result, record) for result in record["steps"]]
    if "step_growth" in record:
        parts.append(_step_growth(record["step_growth"]))
    if "evaluation_growth" in record:
        parts.append(_evaluation(record["evaluation_growth"]))
    if "update_growth" in record:
        parts.append(_update(record["update_growth"]))
    if "waiting" in record:
        parts.append(_waiting(record["waiting"]))
    return "\n\n".join(parts) + "\n"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    commit = machine["commit"] or "unknown"
    changed = ", with uncommitted changes" if machine["uncommitted_changes"] else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "sae-lens", "sae-lens-hsae"))
    return (
        f"# Benchmark\n\n{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"{versions}; commit {commit}{changed}; {machine['date']}. {record['rounds']} rounds in turns: medians, "
        f"with the least and the most."
    )


def _size(result: dict[str, Any], record: dict[str, Any]) -> str:
    rows = [_contestant(name, own) for name, own in result["contestants"].items()]
    heads = ["", "ms per step", "HSAE takes (slowest round)", "activations/s", "peak MB", "L0 per level"]
    megabytes = result["unavoidable_bytes"] / 1e6
    ms = 1000 * result["unavoidable_bytes"] / record["machine"]["copied_bytes_per_second"]
    entries = ", ".join(f"{share:.1f}" for share in result["entries_per_active"])
    updates = "; ".join(
        f"of {name} {milliseconds(update['seconds'])} ms, {update['share_of_training']:.3%} of training"
        for name, update in result["hierarchy_updates"].items()
    )
    lines = [
        f"## A step at {result['size']['name']}\n",
        table(heads, rows),
        "",
        f"The floor: the {ENCODER}, and {megabytes:,.0f} MB to move, {ms:,.1f} ms at the speed of a copy here. "
        f"Entries per active feature, by level: {entries}. A hierarchy update: "
        f"{updates}.",
    ]
    lines += [f"\n{text}" for text in (_goals(result), _parts(result), _stock(result)) if text]
    if result["l0_differs"]:
        lines.append(f"\n**L0 is more than a tenth away from HSAE's in: {', '.join(result['l0_differs'])}.**")
    return "\n".join(lines)


def _goals(result: dict[str, Any]) -> str:
    told = [
        f"{goal['measure']} of {goal['ours']} against {goal['against']} at most {goal['at_most']:.2f}×: "
        f"{goal['multiple']:.2f}× ({goal['slowest']:.2f}×)" + (", **missed**" if goal["missed"] else "")
        for goal in result["goals"]
    ]
    return f"Goals (and the slowest round, by which they are missed): {'; '.join(told)}." if told else ""


def _parts(result: dict[str, Any]) -> str:
    """The profile of a step: what stands between it and the floor, and between hierarchy on and off."""
    columns = result["seconds_by_part"]
    if not columns:
        return ""
    rows = []
    for part in next(iter(columns.values())):
        cells = [f"{1000 * own[part]:,.1f} ({own[part] / sum(own.values()):.0%})" for own in columns.values()]
        rows.append([part, *cells])
    rows.append(["together", *(f"{1000 * sum(own.values()):,.1f}" for own in columns.values())])
    heads = ["part of a step, ms (share)", *columns]
    explained = (
        "Of the whole only the encoder product and the bytes above are the floor; the rest stands between. "
        "The difference between the columns is what the hierarchy costs.\n\n"
        if len(columns) > 1
        else ""
    )
    return explained + table(heads, rows)


def _stock(result: dict[str, Any]) -> str:
    multiple = result["contestants"].get(STOCK, {}).get("hsae_as_multiple")
    if multiple is None:
        return ""
    size = result["size"]
    dense = 4e-6 * size["batch"] * size["n_features"]
    return (
        f"SAELens' own trainer takes {1 / multiple['median']:.2f}× the time of ours on the same SAE: it reads the "
        f"activations in full, {dense:,.0f} MB, which are written for it, turned into booleans, those into numbers, "
        f"and these summed twice; ours counts entries. Its Adam is not the fused one."
    )


def _contestant(name: str, own: dict[str, Any]) -> list[str]:
    if "left_out" in own:
        return [name, own["left_out"], "", "", "", ""]
    multiple = own.get("hsae_as_multiple")
    return [
        name,
        milliseconds(own["seconds"]),
        f"{multiple['median']:.2f}× ({multiple['slowest']:.2f}×)" if multiple else "",
        f"{own['activations_per_second']:,.0f}",
        "killed for want of memory" if own["peak_bytes"] is None else f"{own['peak_bytes'] / 1e6:,.0f}",
        " ".join(f"{l0:.1f}" for l0 in own.get("l0", [])),
    ]


def milliseconds(seconds: dict[str, Any]) -> str:
    """The median, with the least and the most."""
    return f"{1000 * seconds['median']:,.1f} ({1000 * seconds['least']:,.1f}–{1000 * seconds['most']:,.1f})"


def _step_growth(growth: dict[str, Any]) -> str:
    names = list(growth["fits"])
    rows = []
    for row in growth["sizes"]:
        cells = [f"{row['size']['n_features']:,}"]
        for name in names:
            own = row["contestants"][name]
            memory = "?" if own["peak_bytes"] is None else f"{own['peak_bytes'] / 1e6:,.0f}"
            cells.append(f"{milliseconds(own['seconds'])}; {memory} MB")
        rows.append(cells)
    fits = "; ".join(
        f"{name} {1e6 * fit['slope']:.2f} ms per 1,000 features, R² {fit['r_squared']:.4f}, "
        f"at most {fit['largest_distance']:.0%} off the line"
        for name, fit in growth["fits"].items()
    )
    title = growth["sizes"][0]["size"]
    heads = ["features", *(f"{name}: ms per step; peak" for name in names)]
    about = f"d {title['d_in']}, batch {title['batch']}, L0 {title['l0']}"
    return f"## A step against the widths ({about})\n\n{table(heads, rows)}\n\nLinear fits: {fits}."


def _evaluation(growth: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['n_tokens']:,}",
            milliseconds(row["evaluate"]),
            milliseconds(row["encode_twice"]),
            f"{row['evaluate_as_multiple']['median']:.2f}× ({row['evaluate_as_multiple']['slowest']:.2f}×)",
        ]
        for row in growth["rows"]
    ]
    heads = ["tokens", "`evaluate_forest`, ms", "encoding twice, ms", "ratio (slowest round)"]
    fit = growth["fit"]
    line = f"R² {fit['r_squared']:.4f}, at most {fit['largest_distance']:.0%} off the line"
    return f"## Evaluation against the tokens ({growth['size']})\n\n{table(heads, rows)}\n\nLinear fit: {line}."


def _update(growth: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['parents']:,} × {row['children']:,}",
            str(row["d_in"]),
            f"{row['seconds']:,.2f}",
            f"{row['extra_bytes'] / 1e6:,.0f}",
            f"{row['weight_bytes'] / 1e6:,.0f}",
        ]
        for row in growth["rows"]
    ]
    far, fits = growth["extrapolated"], growth["fits"]
    heads = ["parents × children", "d", "seconds", "peak MB beyond the weights", "the weights, MB"]
    note = (
        f"Not run but extrapolated from the rows above (time by d · parents · children, R² "
        f"{fits['seconds']['r_squared']:.4f}; memory: the most of a row, and {BYTES_PER_CHILD} bytes for each child): "
        f"{far['parents']:,} × {far['children']:,} at d {far['d_in']} would take {far['seconds'] / 3600:,.1f} hours "
        f"or more, and {far['extra_bytes'] / 1e9:,.1f} GB beyond the weights."
    )
    return f"## Hierarchy update of one level boundary\n\n{table(heads, rows)}\n\n{note}"


def _waiting(waiting: dict[str, Any]) -> str:
    title = "## Waiting for activations of all-MiniLM-L6-v2"
    if "left_out" in waiting:
        return f"{title}\n\nLeft out: {waiting['left_out']}"
    rows = [
        [
            row["contestant"],
            "prefetched" if row["prefetched"] else "as needed",
            f"{row['waiting_share']:.0%}",
            f"{1000 * row['waiting_seconds_per_step']:,.1f}",
            f"{1000 * row['seconds_per_step']:,.1f}",
            f"{row['activations_per_second']:,.0f}",
        ]
        for row in waiting["rows"]
    ]
    heads = ["", "activations", "time spent waiting", "waiting, ms per step", "step, ms", "activations/s"]
    return f"{title} ({waiting['size']}, {waiting['steps']} steps)\n\n{table(heads, rows)}"
