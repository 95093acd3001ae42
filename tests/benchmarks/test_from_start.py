"""The benchmark of a whole training, in small: that it tells how each step was taken and what it was compared with."""

import json

from benchmarks.from_start import main, measure
from benchmarks.plan import Size
from benchmarks.planted import activations
from sae_lens_hsae.config_checks import OBSERVED_STEPS

TINY = Size(16, (16, 64, 256), 64, 2)


def test_a_training_is_told_step_by_step(tmp_path, capsys):
    main(["--steps", "60", "--every", "3", "--out", str(tmp_path)], TINY)
    record = json.loads((tmp_path / "results.json").read_text())
    assert [row["step"] for row in record["rows"]] == list(range(60))
    assert [row["step"] for row in record["rows"] if "saelens_seconds" in row] == list(range(0, 60, 3))
    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert [line.split(" |")[0] for line in text.splitlines()[6:]] == ["| 0–49", "| 50–59", "| **all**"]


def test_the_form_of_each_step_is_told(monkeypatch):
    forms = {}
    for density in (-1.0, 1.0):
        monkeypatch.setattr("sae_lens_hsae.sae.forms.MAX_DENSITY", density)
        rows = list(measure(TINY, OBSERVED_STEPS + 3, 1, activations(TINY)))
        forms[density] = {row["dense"] for row in rows[OBSERVED_STEPS:]}
    assert forms == {-1.0: {True}, 1.0: {False}}
