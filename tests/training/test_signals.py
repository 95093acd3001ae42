"""Signals end a run with the conventional code: in processes of their own, which one interpreter forks."""

import subprocess
import sys
from pathlib import Path

import pytest

SIGNALS = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from own_runs import run_ours
from host_helpers import hooked_model, signalling

TERM, INT = signal.SIGTERM, signal.SIGINT
for name, at, numbers in [("term", 11, [TERM]), ("int", 11, [INT]), ("twice", 11, [TERM, INT]), ("early", 1, [TERM])]:
    pid = os.fork()
    if not pid:
        signal.signal(INT, signal.default_int_handler)
        run_ours(Path(sys.argv[2]), name, model=hooked_model(signalling(*numbers), at))
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    checkpoints = list((Path(sys.argv[2]) / name).glob("checkpoints/*/[!.]*/manifest.json"))
    print("CASE", name, code, len(checkpoints), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the script forks")
def test_signals_end_a_run_with_the_conventional_code(tmp_path):
    here = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, here, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    cases = {name: rest for name, *rest in (line.split()[1:] for line in done.stdout.splitlines() if "CASE" in line)}
    assert cases == {
        "term": ["143", "1"],
        "int": ["130", "1"],
        "twice": ["-2", "0"],  # killed by the second at once, so nothing more is written
        "early": ["143", "0"],  # before the first step there is nothing to save
    }, done.stderr
    assert "Traceback" not in done.stderr
