"""What importing the package takes beyond SAELens itself: python benchmarks/import_time.py [--runs 5]."""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

HOST, PACKAGE = "sae_lens", "sae_lens_hsae"
LINE = re.compile(r"import time: +(\d+) \| +(\d+) \| +(\S+)$")


@dataclass(frozen=True)
class ImportTime:
    """One process that imported SAELens first and the package then; times in microseconds.

    Attributes:
        host: of SAELens, with all that it imports.
        package: of the package, with all that it imports beyond that.
        own: by module, without what that imports; the package's and whatever came with it.
    """

    host: int
    package: int
    own: dict[str, int]


def measured() -> ImportTime:
    """Import both in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-X", "importtime", "-c", f"import {HOST}\nimport {PACKAGE}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parsed(done.stderr)


def parsed(report: str) -> ImportTime:
    """Read what ``-X importtime`` writes: a module comes after those that it imports.

    Raises:
        ValueError: if one of the two packages is not in it.
    """
    rows = [(int(m[1]), int(m[2]), m[3]) for line in report.splitlines() if (m := LINE.match(line))]
    names = [name for _, _, name in rows]
    for name in (HOST, PACKAGE):
        if name not in names:
            raise ValueError(f"{name} is not in the report of -X importtime")
    host, package = names.index(HOST), names.index(PACKAGE)
    return ImportTime(rows[host][1], rows[package][1], {name: own for own, _, name in rows[host + 1 : package + 1]})


def report(runs: Sequence[ImportTime], n_shown: int = 10) -> str:
    """The ratio with its range, and the modules that take most of it; medians over the runs."""
    ratios = [run.package / run.host for run in runs]
    foreign = sorted({name for run in runs for name in run.own if name.partition(".")[0] != PACKAGE})
    own = {name: statistics.median(run.own.get(name, 0) for run in runs) for name in runs[0].own}
    costly = sorted(own, key=lambda name: -own[name])[:n_shown]
    whole = sum(own.values())
    return "\n".join(
        [
            f"import {PACKAGE} takes {statistics.median(ratios):.1%} of what import {HOST} takes "
            f"(median of {len(runs)} processes, from {min(ratios):.1%} to {max(ratios):.1%})",
            f"modules of others that it adds: {', '.join(foreign) or 'none'}",
            *(f"{own[name] / whole:>6.1%}  {name}" for name in costly),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="processes (default: %(default)s)")
    chosen = parser.parse_args()
    measured()  # the first one reads files from the disk
    print(report([measured() for _ in range(chosen.runs)]))


if __name__ == "__main__":
    main()
