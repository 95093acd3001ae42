"""The GPU's run in small, on a CPU: that it writes what it measured after every row, and keeps to its time."""

import json

from benchmarks.gpu import COMPARED, main
from benchmarks.gpu_report import markdown
from benchmarks.plan import Size
from sae_lens_hsae import HierarchicalTrainingSAE

TINY = (Size(16, (16, 64, 256), 64, 2, "bfloat16"), Size(16, (16, 64, 256), 64, 2, "tf32"))
ON_CPU = ["--device", "cpu", "--rounds", "1", "--no-tests"]


def test_a_run_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(HierarchicalTrainingSAE, "row_devices", ("cpu",))
    main([*ON_CPU, "--out", str(tmp_path), "--commit", "abc"], TINY, (64,))
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["machine"]["commit"] == "abc"
    assert [row["size"] for row in record["steps"]] == [str(size) for size in TINY]
    for row in record["steps"]:
        assert tuple(row["contestants"]) == COMPARED
        for own in row["contestants"].values():
            assert own["seconds"]["median"] > 0
            assert own["peak_bytes"] >= 0
            assert all(1 < l0 < 4 for l0 in own.get("l0", []))
    assert len(record["decoding"][0]["ways"]) == 2
    text = (tmp_path / "results.md").read_text()
    assert text == markdown(record)
    assert text in capsys.readouterr().out
    assert all(f"| {name} |" in text for name in COMPARED)
    assert "activations per second at least 270,000" in text
