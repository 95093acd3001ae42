"""The real client against a loopback server that also misbehaves."""

import json
import shutil
import sqlite3
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from planted import planted_dashboards, save_with_dashboards
from small_saes import D_IN, make_sae

pytest.importorskip("openai")

from sae_lens_hsae.cli import main as cli
from sae_lens_hsae.hub.saved_model import load_hierarchical_sae
from sae_lens_hsae.interpret.feature_cache import Dashboards, collect_dashboards, dashboards_folder, fingerprint
from sae_lens_hsae.interpret.labels.files import labels_beside
from sae_lens_hsae.interpret.language_model import Endpoint, Request, judge_pairs, label_features, sample_pairs
from sae_lens_hsae.interpret.language_model import endpoint as endpoint_module
from sae_lens_hsae.interpret.language_model.naming import parse_label
from sae_lens_hsae.interpret.language_model.prompts import marked

KEY = "a-key-that-nobody-may-see"
Answer = Callable[[str, int], Any]


class Server(ThreadingHTTPServer):
    """Answers what ``answer(user message, times it was asked before)`` gives.

    Text is sent as a completion, a number as that HTTP status; "cut", "garbage", "half" and "slow" misbehave.
    """

    answer: Answer
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.options: list[dict[str, Any]] = []
        self.refused: tuple[str, ...] = ()
        self.keys: set[str] = set()
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user = body["messages"][1]["content"]
        with server.lock:
            times = server.asked[user]
            server.asked[user] += 1
            server.keys.add(self.headers["Authorization"])
            server.options.append({name: body[name] for name in body.keys() - {"model", "messages"}})
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            unknown = [name for name in server.refused if name in body]
            if unknown:
                said = f"{unknown[0]} is not supported with this model."
                self.send(400, json.dumps({"error": {"message": said}}).encode())
            else:
                self.reply(server.answer(user, times))
        except BrokenPipeError:
            pass
        finally:
            with server.lock:
                server.at_once -= 1

    def reply(self, answer: Any) -> None:
        if isinstance(answer, int):
            # Some endpoints quote the key that they refuse.
            self.send(answer, json.dumps({"error": {"message": f"no {self.headers['Authorization']}"}}).encode())
        elif answer == "garbage":
            self.send(200, b"<html>not JSON")
        elif answer == "half":
            self.send(200, b'{"choices": [', promised=500)
        else:
            if answer == "slow":
                time.sleep(1.5)
            choice = {"index": 0, "finish_reason": "length" if answer == "cut" else "stop"}
            message = {"role": "assistant", "content": '{"label": "cut' if answer == "cut" else answer}
            usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
            whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            self.send(200, json.dumps({**whole, "choices": [choice | {"message": message}], "usage": usage}).encode())

    def send(self, status: int, body: bytes, promised: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(promised or len(body)))
        self.send_header("retry-after-ms", "10")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


@pytest.fixture
def server(monkeypatch):
    found = Server()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{found.server_port}/v1")
    yield found
    found.shutdown()
    found.server_close()


def label(text: str) -> str:
    return json.dumps({"label": text})


def requests(*users: str) -> list[Request]:
    return [Request("name it", user) for user in users]


MISBEHAVIOUR = {"a": 429, "b": 500, "c": "half", "d": "garbage", "e": "no object", "f": "cut", "g": "slow"}


def test_what_misbehaves_once_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_module, "TIMEOUT", 1.0)
    server.answer = lambda user, times: MISBEHAVIOUR[user] if not times and user in MISBEHAVIOUR else label(user * 3)
    endpoint = Endpoint("m", tmp_path / "answers")
    users = ["plain", *MISBEHAVIOUR]
    replies = endpoint.ask(requests(*users), parse_label)
    assert replies.answers == [user * 3 for user in users]
    assert replies.errors == {}
    assert replies.n_malformed == 3  # garbage, no object, cut: what the client does not send again by itself
    assert all(server.asked[user] >= 2 for user in MISBEHAVIOUR)
    assert server.most_at_once > 1
    assert replies.prompt_tokens >= 100 * len(users)
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY.encode() not in (tmp_path / "answers").read_bytes()
    assert KEY not in repr(endpoint)


@pytest.mark.parametrize(
    ("wrong", "error", "times"),
    [
        (500, "HTTP 500", 2),
        (429, "HTTP 429", 2),
        ("half", "APIConnectionError", 2),
        ("garbage", "unreadable|malformed", 3),
        ("prose", "malformed", 3),
        ('{"label": 3}', "label must be", 3),
        ('{"label": ""}', "label must be", 3),
        ('["label"]', "no JSON object", 3),
        ("[" * 100_000, "malformed", 3),
        (r'{"label": "emoji \ud83e"}', "half of a surrogate pair", 3),
        (r'{"label": "fine", "why": ["\udd14"]}', "half of a surrogate pair", 3),
        (r'{"label": "fine", "\udd14": 1}', "half of a surrogate pair", 3),
        ("cut", "cut off after max_tokens=200", 3),
    ],
)
def test_what_always_misbehaves_is_reported_and_never_guessed(server, tmp_path, monkeypatch, wrong, error, times):
    monkeypatch.setattr(endpoint_module, "MAX_RETRIES", 1)
    server.answer = lambda user, _: wrong if user == "bad" else label("fine")
    endpoint = Endpoint("m", tmp_path / "answers")
    replies = endpoint.ask(requests("good", "bad"), parse_label)
    assert replies.answers == ["fine", None]
    assert list(replies.errors) == [1]
    assert any(part in replies.errors[1] for part in error.split("|"))
    assert KEY not in replies.errors[1]
    assert server.asked["bad"] == times
    server.answer = lambda *_: label("now")
    again = endpoint.ask(requests("good", "bad"), parse_label)
    assert again.answers == ["fine", "now"]
    assert again.n_cached == 1


def test_an_endpoint_that_is_always_too_slow_is_reported(server, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_module, "MAX_RETRIES", 1)
    monkeypatch.setattr(endpoint_module, "TIMEOUT", 0.2)
    server.answer = lambda *_: "slow"
    replies = Endpoint("m", tmp_path / "answers").ask(requests("bad"), parse_label)
    assert replies.answers == [None]
    assert replies.errors == {0: "APITimeoutError"}
    assert server.asked["bad"] == 2


def test_an_interrupted_run_goes_on_and_a_repeated_one_costs_nothing(server, tmp_path):
    users = [f"text {i}" for i in range(12)]
    server.answer = lambda user, _: 401 if user == "text 7" else label(user)
    endpoint = Endpoint("m", tmp_path / "answers", concurrency=1)
    assert endpoint.estimate(requests(*users), parse_label)[0] == 12
    with pytest.raises(ValueError, match=r"HTTP 401.*OPENAI_API_KEY") as refused:
        endpoint.ask(requests(*users), parse_label)
    assert KEY not in "".join(traceback.format_exception(refused.value))
    assert endpoint.estimate(requests(*users), parse_label)[0] < 12

    server.answer = lambda user, _: label(user)
    assert endpoint.ask(requests(*users), parse_label).answers == users
    before = server.asked.copy()
    assert all(before[user] == 1 for user in users[:7])
    assert endpoint.ask(requests(*users), parse_label).n_cached == 12
    assert server.asked == before
    assert endpoint.estimate(requests(*users), parse_label) == (0, 0, 0, 0)
    other = Endpoint("another", tmp_path / "answers")
    assert other.estimate(requests(*users), parse_label)[0] == 12


def test_what_is_missing_is_said_before_anything_is_asked(server, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("no database, but long enough to be read as one\n" * 20)
    with pytest.raises(ValueError, match="is no cache of answers"):
        Endpoint("m", tmp_path / "text").ask(requests("x"), parse_label)
    with pytest.raises(ValueError, match="concurrency=0 must be at least 1"):
        Endpoint("m", tmp_path / "answers", concurrency=0)
    server.answer = lambda *_: 404
    with pytest.raises(ValueError, match=r"HTTP 404.*model='m'"):
        Endpoint("m", tmp_path / "answers").ask(requests("x", "y", "z"), parse_label)
    assert sum(server.asked.values()) == 1
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr(endpoint_module, "MAX_RETRIES", 0)
    with pytest.raises(ConnectionError, match=r"no endpoint answers at http://127\.0\.0\.1:9"):
        Endpoint("m", tmp_path / "answers").ask(requests("x"), parse_label)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        Endpoint("m", tmp_path / "answers").ask(requests("x"), parse_label)
    assert Endpoint("m", tmp_path / "answers").estimate(requests("x"), parse_label)[0] == 1
    assert Endpoint("m", tmp_path / "none" / "answers").estimate(requests("x"), parse_label)[0] == 1
    assert not (tmp_path / "none").exists(), "an estimate writes nothing"


@pytest.mark.parametrize("kept", [r'{"label": "emoji \ud83e"}', "no object", '{"label": 3}'])
def test_a_kept_answer_that_cannot_be_used_is_asked_again(server, tmp_path, kept):
    server.answer = lambda user, _: label(user)
    endpoint = Endpoint("m", tmp_path / "answers")
    endpoint.ask(requests("a", "b"), parse_label)
    with closing(sqlite3.connect(tmp_path / "answers")) as stored, stored:
        stored.execute("UPDATE answers SET answer = ? WHERE answer = ?", (kept, label("a")))
    assert endpoint.estimate(requests("a", "b"), parse_label)[0] == 1
    replies = endpoint.ask(requests("a", "b"), parse_label)
    assert replies.answers == ["a", "b"]
    assert replies.n_cached == 1
    assert endpoint.ask(requests("a", "b"), parse_label).n_cached == 2


TEXTS = ["", " Science", " biology", " physics", " Iron", "", "", ""]


@pytest.fixture(scope="module")
def dashboards():
    return planted_dashboards({0: (1, 2, 3), 4: (2,), 5: (3,), 1: (4,)}, {4: 0, 5: 0})


def test_features_are_named_from_the_top_down(server, tmp_path, dashboards):
    def answer(user: str, _: int) -> str:
        return label("life" if "«biology»" in user and "«Science" not in user else "knowledge")

    server.answer = answer
    labels, replies = label_features(dashboards, TEXTS.__getitem__, Endpoint("m", tmp_path / "answers"))
    assert labels == {0: "knowledge", 1: "knowledge", 4: "life", 5: "knowledge"}
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
        verdict = ("«Science" in broad and "«Science" not in narrow) or changes_its_mind
        return json.dumps({"special_case": verdict, "confidence": 0.9})

    server.answer = answer
    found = judge_pairs(dashboards, pairs, TEXTS.__getitem__, Endpoint("m", tmp_path / "answers"), 2)
    rates = found.rates()
    assert rates.loc["edge", ["n", "rate"]].tolist() == [2, 1]
    assert 0.3 < rates.loc["edge", "low"] < 0.4  # Wilson: 2 of 2
    assert rates.loc["sibling", "rate"] == rates.loc["swapped", "rate"] == 0
    assert found.agreement() == pytest.approx(6 / 8)
    assert len(found.pairs) == 16

    server.answer = lambda *_: '{"special_case": "yes", "confidence": 1}'
    silent = judge_pairs(dashboards, pairs, TEXTS.__getitem__, Endpoint("other", tmp_path / "answers"))
    assert silent.rates().n.tolist() == [0, 0, 0, 0]
    assert len(silent.replies.errors) == 8


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

    server.answer = lambda *_: '{"special_case": true, "confidence": 1}'
    cli.main(["judge", str(saved), "--model", "m", "--edges", "3", "--repetitions", "2"])
    out = capsys.readouterr().out
    assert "edge     3" in out
    assert "agree: 100.0%" in out
    rows = (saved / "judgements.csv").read_text().splitlines()
    assert rows[0] == "kind,broad,narrow,repetition,special_case,confidence"
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


def test_names_of_weights_that_have_changed_since_are_neither_shown_nor_kept(server, saved):
    server.answer = lambda *_: label("a name")
    cli.main(["label", str(saved), "--model", "m"])
    written = json.loads((saved / "labels.json").read_text())
    asked = len(server.options)
    read = load_hierarchical_sae(saved)
    assert labels_beside(saved, None, lambda: fingerprint(read, read.forest))[0] == "a name"
    (saved / "labels.json").write_text(json.dumps(written | {"weights": "those of before"}))
    message = r"labels='.*labels\.json' are for other weights .* delete the file, and hsae label names"
    for command in (["label", "--model", "another"], ["explain", "--text", "x"], ["explore"]):
        with pytest.raises(SystemExit, match=message):
            cli.main([command[0], str(saved), *command[1:]])
    assert len(server.options) == asked
    del written["weights"]
    (saved / "labels.json").write_text(json.dumps(written))
    plain = labels_beside(saved, None, lambda: fingerprint(read, read.forest))
    assert plain[0] == "a name", "a file that says nothing of weights is taken"


def test_a_question_that_is_refused_ends_no_run(server, tmp_path):
    server.answer = lambda user, _: 400 if user == "b" else label(user)
    replies = Endpoint("m", tmp_path / "answers").ask(requests("a", "b", "c"), parse_label)
    assert replies.answers == ["a", None, "c"]
    assert replies.errors == {1: "HTTP 400: no Bearer …"}
    server.answer = lambda *_: 400
    with pytest.raises(ValueError, match=r"refused the request \(HTTP 400: no Bearer …\); check OPENAI_API_KEY"):
        Endpoint("m", tmp_path / "others").ask(requests("d"), parse_label)


@pytest.mark.parametrize("refused", [("max_tokens",), ("temperature",), ("temperature", "max_tokens")])
def test_a_model_that_reasons_is_asked_without_the_options_that_it_refuses(server, tmp_path, refused):
    server.refused, server.answer = refused, lambda user, _: label(user)
    replies = Endpoint("m", tmp_path / "answers").ask(requests("a", "b", "c"), parse_label)
    assert replies.answers == ["a", "b", "c"]
    assert server.asked == {"a": 1 + len(refused), "b": 1, "c": 1}
    longest = {"max_completion_tokens": 4096} if "max_tokens" in refused else {"max_tokens": 200}
    sampled = {} if "temperature" in refused else {"temperature": 0.0}
    assert server.options[-1] == longest | sampled
    # An endpoint that refuses without naming an option refuses the question.
    server.refused, server.answer = (), lambda *_: 400
    with pytest.raises(ValueError, match="refused the request"):
        Endpoint("m", tmp_path / "others").ask(requests("d"), parse_label)


def test_a_model_whose_first_answer_is_cut_off_may_answer_at_greater_length(server, tmp_path):
    server.answer = lambda user, times: "cut" if user == "a" and times == 0 else label(user)
    replies = Endpoint("m", tmp_path / "answers").ask(requests("a", "b"), parse_label)
    assert replies.answers == ["a", "b"]
    assert [options["max_tokens"] for options in server.options] == [200, 4096, 4096]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "cfg.json").unlink(), "holds no cfg.json"),
        (lambda folder: shutil.rmtree(folder / "dashboards"), "collect them: hsae explore"),
    ],
)
def test_the_commands_refuse_what_is_incomplete(server, saved, spoil, message):
    spoil(saved)
    with pytest.raises(SystemExit, match=message):
        cli.main(["label", str(saved), "--model", "m"])
    assert not server.asked
