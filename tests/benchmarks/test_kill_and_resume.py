"""Runs killed with SIGKILL, in training and in the middle of writing checkpoints, end as if nothing had happened."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_and_resume.py"


@pytest.mark.skipif(sys.platform != "linux", reason="the script forks and reads Linux' exit codes")
def test_killed_runs_resume_and_end_equal_to_the_bit():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--trials", "4", "--seed", "1"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.search(r"4 runs killed (\d+) times: all ended equal to the bit", done.stdout)
    assert said
    assert int(said[1]) >= 4
