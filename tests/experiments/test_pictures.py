"""The documentation's pictures show a forest of the present defaults."""

import hashlib
import json
import re
from pathlib import Path
from runpy import run_path

import pytest

from experiments.pictures import configuration

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
OF_TABLES = {"gemma-levels.png", "steering.png", "found-again.png"}
"""Figures of `python -m experiments`, not of the explorer."""


@pytest.fixture(scope="module")
def record():
    return json.loads((IMAGES / "run.json").read_text())


def test_the_pictures_are_of_the_example_as_it_is_now(record):
    example = run_path(str(ROOT / "examples/gemma_3_270m.py"))["config"]()
    present = json.loads(json.dumps(configuration(example.to_dict())))
    again = "run examples/gemma_3_270m.py, then python -m experiments.pictures runs/gemma-3-270m"
    assert record["configuration"] == present, again


def test_every_picture_is_the_one_recorded_and_is_used(record):
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in IMAGES.glob("*.png")}
    assert {name: hash_ for name, hash_ in hashes.items() if name not in OF_TABLES} == record["pictures"]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    used = {name for page in pages for name in re.findall(r"images/([\w-]+\.png)", page.read_text())}
    assert used == set(hashes)
