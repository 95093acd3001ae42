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

def late(*numbers):  # while the final model is put in place
    def watch(event, arguments):
        if event == "os.rename" and str(arguments[1]).endswith("out/sae_weights.safetensors"):
            signalling(*numbers)(None)
    sys.addaudithook(watch)

CASES = [("term", 11, [TERM]), ("int", 11, [INT]), ("twice", 11, [TERM, INT]), ("early", 1, [TERM])]
for name, at, numbers in [*CASES, ("late", None, [TERM]), ("late-twice", None, [INT, TERM])]:
    pid = os.fork()
    if not pid:
        signal.signal(INT, signal.default_int_handler)
        if at is None:
            late(*numbers)
        run_ours(Path(sys.argv[2]), name, model=hooked_model(signalling(*numbers), at) if at else None)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    run = Path(sys.argv[2]) / name
    checkpoints = list(run.glob("checkpoints/*/[!.]*/manifest.json"))
    print("CASE", name, code, len(checkpoints), int((run / "out" / "cfg.json").exists()), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the script forks")
def test_signals_end_a_run_with_the_conventional_code(tmp_path):
    here = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, here, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    cases = {name: rest for name, *rest in (line.split()[1:] for line in done.stdout.splitlines() if "CASE" in line)}
    assert cases == {
        "term": ["143", "1", "0"],
        "int": ["130", "1", "0"],
        "twice": ["-2", "0", "0"],  # killed by the second at once, so nothing more is written
        "early": ["143", "0", "0"],  # before the first step there is nothing to save
        "late": ["143", "0", "1"],  # the model is, before the run ends
        "late-twice": ["-15", "0", "0"],
    }, done.stderr
    assert "Traceback" not in done.stderr
