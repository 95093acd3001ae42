"""The documentation's pictures show a forest of the present defaults."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from runpy import run_path

import pytest
from small_saes import make_sae

from experiments.pictures import configuration, main

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


@pytest.mark.browser
def test_the_command_takes_pictures_of_a_run(tmp_path):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    make_run(tmp_path)
    main([str(tmp_path), "--output", str(tmp_path)])
    record = json.loads((tmp_path / "run.json").read_text())
    names = {"tree", "overview", "feature", "compare", "map", "search"}
    assert set(record["pictures"]) == {f"{name}.png" for name in names}
    for name, hash_ in record["pictures"].items():
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert hashlib.sha256(data).hexdigest() == hash_


def make_run(folder: Path) -> None:
    """A small saved SAE with its page and its run's configuration."""
    from hostile_page import HOSTILE, LABELS, stream

    from sae_lens_hsae.interpret.feature_cache import collect_dashboards
    from sae_lens_hsae.interpret.page import write_page

    sae = make_sae(seed=3, normalize_activations="none")
    sae.save_inference_model(folder)
    data = collect_dashboards(sae, sae.forest, stream(), progress=False)
    write_page(data, sae.forest, folder / "explorer.html", HOSTILE.__getitem__, LABELS)
    config = run_path(str(ROOT / "examples/gemma_3_270m.py"))["config"]().to_dict()
    (folder / "runner_cfg.json").write_text(json.dumps(config))
