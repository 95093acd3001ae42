"""The tutorials run from beginning to end, and find what they say they find."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from host_helpers import restored_signal_handlers

from sae_lens_hsae import HierarchicalSAE

FOLDER = Path(__file__).parents[2] / "examples" / "tutorials"


def run(name: str) -> dict[str, Any]:
    with restored_signal_handlers():
        return runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_there_is_a_test_for_each():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in FOLDER.glob("*.py")} <= tested


def test_train_and_read():
    after = run("train_and_read")
    assert after["forest"].level_widths == (8, 32)
    assert after["true"].float().mean() > 0.4  # one in eight, by chance
    assert after["evaluation"].levels[1].variance_explained > 0.8


def test_forest_for_your_saes(tmp_path):
    after = run("forest_for_your_saes")
    assert HierarchicalSAE.load_from_disk(tmp_path / "runs" / "own").forest == after["forest"]
    assert len(after["forest"].edges()) > 16
    assert after["frame"]["variance_explained"].is_monotonic_increasing


def test_steer_and_contrast():
    after = run("steer_and_contrast")
    assert after["result"].findings
    assert after["found"].more_in_a
    assert len(after["found"].path) > 1
    assert (after["without"] - after["logits"]).abs().max() > 0


def test_every_script_becomes_a_notebook_of_its_cells():
    jupytext = pytest.importorskip("jupytext", reason="the extra 'docs' is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra 'docs' is not installed")
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    notebook_of = runpy.run_path(str(FOLDER.parents[1] / "docs/site_tools/tutorial_pages.py"))["notebook_of"]
    for script in FOLDER.glob("*.py"):
        text = script.read_text(encoding="utf-8")
        notebook = nbformat.reads(notebook_of(text), as_version=4)
        nbformat.validate(notebook)
        assert notebook.cells[0].cell_type == "markdown"
        assert notebook.cells[0].source.startswith("# ")
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert all(compile(source, script.name, "exec") for source in code)
        assert [
            cell.source for cell in jupytext.reads(text, fmt="py:percent").cells if cell.cell_type == "code"
        ] == code
        assert not any(cell.get("outputs") for cell in notebook.cells)
