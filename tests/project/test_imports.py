"""What importing the package brings along beyond SAELens."""

import subprocess
import sys

import pytest

from benchmarks.import_time import parsed, report

HEAVY = ("IPython", "kaleido", "matplotlib", "networkx", "openai", "plotly", "scipy", "sklearn")
"""Used by parts of the package, and not loaded by SAELens, so not to be loaded by everyone who imports it."""

ADDED = """
import sys
import sae_lens
before = set(sys.modules)
import sae_lens_hsae
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(*sorted({name.partition(".")[0] for name in before}))
"""


@pytest.fixture(scope="module")
def added_and_before():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ADDED], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()[-2:]]


def test_importing_the_package_loads_no_heavy_module(added_and_before):
    added, before = added_and_before
    assert "sae_lens_hsae" in added
    assert {"torch", "sae_lens"} <= before
    assert not added & set(HEAVY)


def test_the_report_reads_what_python_writes():
    text = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |   torch
import time:        50 |        150 | sae_lens
some warning
import time:         7 |          7 |     scipy.stats
import time:         3 |         10 |   sae_lens_hsae.forest
import time:         5 |         15 | sae_lens_hsae
import time:         9 |          9 | atexit_things
"""
    found = parsed(text)
    assert (found.host, found.package) == (150, 15)
    assert found.own == {"scipy.stats": 7, "sae_lens_hsae.forest": 3, "sae_lens_hsae": 5}
    lines = report([found, found], n_shown=2).splitlines()
    assert lines[0].endswith("takes 10.0% of what import sae_lens takes (median of 2 processes, from 10.0% to 10.0%)")
    assert lines[1] == "modules of others that it adds: scipy.stats"
    assert lines[2:] == [" 46.7%  scipy.stats", " 33.3%  sae_lens_hsae"]
    with pytest.raises(ValueError, match="sae_lens_hsae is not in the report"):
        parsed(text.split("some")[0])
