"""SAELens' own tests with this package's architecture in place of theirs: python -m release.host_tests SOURCE.

SOURCE is a checkout of SAELens at the version that is installed; its sdist holds no tests. Every list of architectures
in the tests is replaced by one architecture, first ``jumprelu`` and then ``hsae``; models and text that the tests would
fetch have stand-ins. Of the tests that build an SAE and pass with the first, those are listed that fail with the
second, and why. Read them one by one: some of SAELens' rules are not ours (one b_dec, all features decoded, rows of any
norm, folding into the rows).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
THEIRS, OURS = "jumprelu", "hsae"


def outcomes(source: Path, architecture: str, selected: list[str]) -> dict[str, dict[str, Any]]:
    """Of every test that is run for an architecture its outcome, why it failed, and whether it built an SAE."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = {
            **os.environ,
            "HOST_TESTS_ARCHITECTURE": architecture,
            "HOST_TESTS_REPORT": str(report),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join([str(source), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        options = ["-q", "--continue-on-collection-errors", "-p", "release.host_tests_plugin", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(source), "-c", os.devnull, *selected]
        done = subprocess.run(command, cwd=source, env=environment, stdout=sys.stderr, check=False)
        if not report.is_file():
            sys.exit(f"pytest ended with code {done.returncode} before any test; its output says why")
        return json.loads(report.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="a checkout of SAELens")
    parser.add_argument("selected", nargs="*", default=["tests"], help="files of tests in it (default: all)")
    chosen = parser.parse_args()
    source = chosen.source.resolve()
    if not (source / "tests" / "helpers.py").is_file():
        sys.exit(f"{source} holds no tests/helpers.py; give a checkout of SAELens, its sdist has no tests")
    theirs, ours = (outcomes(source, architecture, chosen.selected) for architecture in (THEIRS, OURS))
    passing = [name for name, each in theirs.items() if each["outcome"] == "passed" and each["built"]]
    failing = [name for name in passing if ours.get(name, {}).get("outcome") != "passed"]
    for name in failing:
        print(f"{name}\n    {ours.get(name, {'reason': 'not collected'})['reason']}")
    n = len(passing)
    print(
        f"sae-lens {version('sae-lens')}: of {n} tests that build an SAE and pass with {THEIRS}, "
        f"{n - len(failing)} pass with {OURS}"
    )


if __name__ == "__main__":
    main()
