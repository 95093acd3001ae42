"""The workers of pytest-xdist refuse to start unless all of them collect the same tests under the same names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def collected(hash_seed: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout.splitlines()[:-1]  # without the line that tells the time


@pytest.mark.slow
def test_two_processes_collect_the_same_tests():
    """Neither the clock, nor the order of a set, nor a random number may stand in a test's name."""
    assert collected("1") == collected("2")
