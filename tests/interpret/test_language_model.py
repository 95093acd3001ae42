"""Features named and edges judged by the real client, from a loopback server."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from language_model_server import label
from planted import planted_dashboards, save_with_dashboards
from small_saes import D_IN, make_sae

pytest.importorskip("openai")

from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.feature_cache import Dashboards, collect_dashboards, dashboards_folder, fingerprint
from sae_lens_hsae.interpret.labels.files import labels_beside
from sae_lens_hsae.interpret.language_model import Endpoint, judge_pairs, label_features, sample_pairs
from sae_lens_hsae.interpret.language_model.endpoint import Replies
from sae_lens_hsae.interpret.language_model.judging import COLUMNS, RELATIONS, Judgements
from sae_lens_hsae.interpret.language_model.prompts import marked

TEXTS = ["", " Science", " biology", " physics", " Iron", "", "", ""]


@pytest.fixture(scope="module")
def dashboards():
    """Feature 6 is a copy of its parent."""
    found = planted_dashboards({0: (1, 2, 3), 4: (2,), 5: (3,), 6: (1, 2, 3), 1: (4,)}, {4: 0, 5: 0, 6: 0})
    return replace(found, parent_cosine=found.parent_cosine.index_fill(0, torch.tensor(6), 0.81))


def test_features_are_named_from_the_top_down(server, tmp_path, dashboards):
    def answer(user: str, _: int) -> str:
        return label("life" if "«biology»" in user and "«Science" not in user else "knowledge")

    server.answer = answer
    labels, replies = label_features(dashboards, TEXTS.__getitem__, Endpoint("m", tmp_path / "answers"))
    assert labels == {0: "knowledge", 1: "knowledge", 4: "life", 5: "knowledge", 6: "knowledge"}
    assert len(replies) == 3
    of_child = next(user for user in server.asked if "«biology»" in user and "«Science" not in user)
    assert "The broader feature: knowledge" in of_child
    assert "1. physics" in of_child, "its sibling's tokens"


def test_edges_and_controls_are_judged(server, tmp_path, dashboards):
    pairs = sample_pairs(dashboards)
    assert sorted(pairs) == [
        ("edge", 0, 4), ("edge", 0, 5), ("random", 1, 4), ("random", 1, 5),
        ("sibling", 4, 5), ("sibling", 5, 4), ("swapped", 4, 0), ("swapped", 5, 0),
    ]  # fmt: skip
    asked: Counter[str] = Counter()

    def answer(user: str, _: int) -> str:
        broad, narrow = user.split("Feature B")
        asked[user] += 1
        changes_its_mind = "«Iron»" in broad and asked[user] == 2
        is_part = ("«Science" in broad and "«Science" not in narrow) or changes_its_mind
        relation = "refines" if is_part else "same" if "«Science" in narrow else "none"
        return json.dumps({"relation": relation, "confidence": 0.9})

    server.answer = answer
    found = judge_pairs(dashboards, pairs, TEXTS.__getitem__, Endpoint("m", tmp_path / "answers"), 2)
    rates = found.rates()
    shares = rates.loc[["edge", "sibling", "swapped"], ["refines", "same", "none"]].map(lambda share: share.value)
    assert shares.values.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert rates.n.tolist() == [2, 2, 2, 2]
    assert str(rates.loc["edge", "none"]) == "0.000 [nan, nan]", "of one parent"
    assert found.agreement() == pytest.approx(6 / 8)
    assert len(found.pairs) == 16

    server.answer = lambda _, times: f'{{"{("relation", "special_case")[times % 2]}": true, "confidence": 1}}'
    silent = judge_pairs(dashboards, pairs, TEXTS.__getitem__, Endpoint("other", tmp_path / "answers"))
    assert silent.rates().n.tolist() == [0, 0, 0, 0]
    assert len(silent.replies.errors) == 8


def test_the_pairs_of_a_parent_are_no_independent_draws():
    verdicts = [("edge", parent, child, 0, RELATIONS[parent % 2], 0.9) for parent in range(20) for child in range(5)]
    rates = Judgements(pd.DataFrame(verdicts, columns=pd.Index(COLUMNS)), Replies([])).rates()
    refines, none = rates.loc["edge", ["refines", "none"]]
    assert refines.value == 0.5
    assert 0.35 < refines.high - refines.low < 0.5, "as of 20 draws; of 100 it would be 0.2"
    assert (none.low, round(none.high, 3)) == (0.0, 0.161), "Wilson, 0 of 20"


def test_random_controls_are_of_the_parents_level_and_fire_about_as_often():
    sae = make_sae(level_widths=[30, 40, 60])
    sae.threshold.data.mul_(torch.rand(130, generator=torch.Generator().manual_seed(1)) * 3)
    sae.threshold.data[:3] = 1e9
    x = torch.randn(60, 8, D_IN, generator=torch.Generator().manual_seed(0)) * 2
    found = collect_dashboards(sae, sae.forest, [(torch.zeros(60, 8, dtype=torch.int64), x)], progress=False)
    assert (found.n_firing == 0).any(), "some never fire"
    n_random = 0
    edge = (-1, -1)
    for kind, broad, narrow in sample_pairs(found):
        if kind == "edge":
            edge = (broad, narrow)
            assert sae.forest.parent(narrow) == broad
        elif kind == "sibling":
            assert narrow == edge[1] != broad
            assert broad in sae.forest.siblings(narrow)
        elif kind == "random":
            n_random += 1
            assert narrow == edge[1]
            level = sae.levels[int(sae.levels.level_of(torch.tensor(edge[0])))]
            assert level.start <= broad < level.stop
            counts = found.n_firing[level].double()
            away = (counts.log() - found.n_firing[edge[0]].double().log()).abs()
            away[edge[0] - level.start] = torch.inf
            assert away[broad - level.start] <= away.sort().values[4]
        assert (found.n_firing[[broad, narrow]] > 0).all()
    assert n_random > 50


def test_pairs_are_drawn_without_a_loop_over_the_level(monkeypatch):
    """Reading a level's features one by one took 40 s for 5,000 edges."""
    forest = make_sae(level_widths=[1000, 1500]).forest
    n_firing = torch.randint(1, 500, (2500,), generator=torch.Generator().manual_seed(0))
    dashboards: Any = SimpleNamespace(forest=forest, n_firing=n_firing, is_copy=n_firing < 0)
    read = []
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: bool(read.append(1) or tensor.item()))
    pairs = sample_pairs(dashboards)
    n_edges = sum(kind == "edge" for kind, _, _ in pairs)
    assert n_edges > 500
    assert len(read) < n_edges


def test_marks_enclose_runs_of_tokens():
    assert marked([" the", " cat", "s", " sat"], [False, True, True, False]) == "the «cats» sat"
    assert marked(["a", " b"], [True, True]) == "«a b»"
    split = ["see", " ", "<0xE6>", "<0x97>", "<0xA5>", "<0xE6>", "<0x9C>", "<0xAC>", "."]
    for place in (2, 3, 4):
        assert marked(split, [i == place for i in range(9)]) == "see «日»本."
    assert marked(split[:-2], [True] * 7) == "«see 日<0xE6><0x9C>»"


def test_no_edges_to_judge_are_refused(dashboards):
    with pytest.raises(ValueError, match="n_edges=0 must be at least 1"):
        sample_pairs(dashboards, 0)


@pytest.fixture
def saved(tmp_path):
    return save_with_dashboards(tmp_path / "sae")


def test_the_commands_estimate_and_then_write(server, saved, capsys, monkeypatch):
    n_fired = int((Dashboards.load(dashboards_folder(saved)).n_firing > 0).sum())
    server.answer = lambda *_: label("a name")
    with monkeypatch.context() as without_key:
        without_key.delenv("OPENAI_API_KEY")
        cli.main(["label", str(saved), "--model", "m", "--estimate", "--price", "1", "2"])
        with pytest.raises(SystemExit, match="OPENAI_API_KEY is not set"):
            cli.main(["label", str(saved), "--model", "m"])
    estimated = capsys.readouterr().out
    assert estimated.startswith(f"{n_fired} questions to ask, about ")
    assert f" at most {200 * n_fired:,} out, or {4096 * n_fired:,} if the model reasons first" in estimated
    assert "; at most about 0." in estimated
    cli.main(["label", str(saved), "--model", "m", "--estimate", "--price", "0", "2", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["tokens_out_at_most_if_it_reasons"] == 4096 * n_fired
    assert said["cost_at_most_if_it_reasons"] == pytest.approx(4096 * n_fired * 2 / 1e6)
    assert not server.asked
    cli.main(["label", str(saved), "--model", "m"])
    written = json.loads((saved / "labels.json").read_text())
    assert written.pop("weights") == Dashboards.load(dashboards_folder(saved)).fingerprint
    assert len(written) == n_fired
    assert set(written.values()) == {"a name"}
    assert f"{n_fired} of {n_fired} features named" in capsys.readouterr().out

    server.answer = lambda *_: '{"relation": "none", "confidence": 1}'
    cli.main(["judge", str(saved), "--model", "m", "--edges", "3", "--repetitions", "2"])
    out = capsys.readouterr().out
    assert "edge     3  0.000 [0.000, 0.561]  0.000 [0.000, 0.561]  1.000 [0.439, 1.000]" in out
    assert re.search(r"copies of their parents: the children of 1 of \d+ edges\n.* agree: 100.0%", out)
    rows = (saved / "judgements.csv").read_text().splitlines()
    assert rows[0] == "kind,broad,narrow,repetition,relation,confidence"
    assert sum(row.startswith("swapped,") for row in rows) == 6


def test_names_that_stand_are_not_lost_where_none_is_answered(server, saved, capsys):
    server.answer = lambda *_: label("a name")
    cli.main(["label", str(saved), "--model", "m"])
    cli.main(["label", str(saved), "--model", "m", "--estimate"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 questions to ask")
    written = json.loads((saved / "labels.json").read_text())
    server.answer = lambda *_: 429
    with pytest.raises(SystemExit, match=r"no question was answered \(HTTP 429.*\); nothing is written"):
        cli.main(["label", str(saved), "--model", "another"])
    assert json.loads((saved / "labels.json").read_text()) == written
    with pytest.raises(SystemExit, match="no question was answered"):
        cli.main(["judge", str(saved), "--model", "another", "--edges", "3"])
    assert not (saved / "judgements.csv").exists()

    first = iter([label("new")])
    server.answer = lambda *_: next(first, 500)
    cli.main(["label", str(saved), "--model", "third"])
    partly = json.loads((saved / "labels.json").read_text())
    assert partly.pop("weights") == written.pop("weights")
    assert sorted(partly.values()) == ["a name"] * (len(written) - 1) + ["new"]
    assert "1 of the earlier labels were replaced or left out" in capsys.readouterr().out
    assert json.loads((saved / "former-labels.json").read_text())["0"] == "a name", "it may have been written by hand"
    (saved / "labels.json").write_text(json.dumps(written | partly | {"0": "by hand"}))
    server.answer = lambda *_: label("fourth")
    cli.main(["label", str(saved), "--model", "fourth"])
    assert json.loads((saved / "former-labels-2.json").read_text())["0"] == "by hand"
    assert json.loads((saved / "former-labels.json").read_text())["0"] == "a name"


def test_names_of_weights_that_have_changed_since_are_neither_shown_nor_kept(server, saved):
    server.answer = lambda *_: label("a name")
    cli.main(["label", str(saved), "--model", "m"])
    written = json.loads((saved / "labels.json").read_text())
    asked = len(server.options)
    read = load_hierarchical_sae(saved)
    assert labels_beside(saved, read.forest, weights=lambda: fingerprint(read, read.forest))[0] == "a name"
    (saved / "labels.json").write_text(json.dumps(written | {"weights": "those of before"}))
    message = r"labels='.*labels\.json' are for other weights .* delete the file, and hsae label names"
    for command in (["label", "--model", "another"], ["explain", "--text", "x"], ["explore"]):
        with pytest.raises(SystemExit, match=message):
            cli.main([command[0], str(saved), *command[1:]])
    assert len(server.options) == asked
    del written["weights"]
    (saved / "labels.json").write_text(json.dumps(written))
    plain = labels_beside(saved, read.forest, weights=lambda: fingerprint(read, read.forest))
    assert plain[0] == "a name", "a file that says nothing of weights is taken"


def test_without_dashboards_the_commands_say_how_to_collect_them(server, saved):
    shutil.rmtree(saved / "dashboards")
    with pytest.raises(SystemExit, match="collect them: hsae explore"):
        cli.main(["label", str(saved), "--model", "m"])
    assert not server.asked
