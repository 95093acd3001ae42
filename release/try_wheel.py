"""Use an installed sae-lens-hsae as its user would: python release/try_wheel.py FOLDER, which gets what is written.

It needs what the wheel requires and nothing else, and no network.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parent.parent


def hsae(*arguments: str) -> str:
    """What the command writes to stdout."""
    command = [str(Path(sys.executable).with_name("hsae")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"hsae {' '.join(arguments)} ended with code {done.returncode}:\n{done.stderr}")
    return done.stdout


def main(folder: str) -> None:
    import sae_lens_hsae

    found = Path(sae_lens_hsae.__file__)
    assert ROOT not in found.parents or "site-packages" in found.parts, f"{found} is the source, not an installed wheel"
    subprocess.run([sys.executable, "-W", "ignore", str(ROOT / "examples" / "tiny.py"), folder], check=True)
    page = Path(folder, "explorer.html").read_text(encoding="utf-8")
    assert "<script" in page
    assert "Content-Security-Policy" in page

    said = hsae("--version")
    assert version("sae-lens-hsae") in said, said
    config = json.loads(
        hsae("train", "--preset", "gpt2", "--preset", "paper", "--training_tokens", "1024000", "--dry-run", "--json")
    )
    assert config["config"]["sae"]["structural_loss_coefficient"] == 0.01
    hsae("convert", folder, str(Path(folder, "forest.csv")))
    assert len(Path(folder, "forest.csv").read_text().splitlines()) == 1 + 8 + 16 + 32

    names = ("sae-lens-hsae", "sae-lens", "transformer-lens", "transformers", "torch", "datasets", "numpy", "pandas")
    print(f"Python {platform.python_version()}:", ", ".join(f"{name} {version(name)}" for name in names), "work")


if __name__ == "__main__":
    main(sys.argv[1])
