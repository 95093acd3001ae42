"""What importing the package brings along beyond SAELens."""

import subprocess
import sys

import pytest

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
