"""The real client against a loopback server that also misbehaves."""

import sqlite3
import traceback
from contextlib import closing

import pytest
from language_model_server import KEY, label

pytest.importorskip("openai")

from sae_lens_hsae.interpret.language_model import Endpoint, Request
from sae_lens_hsae.interpret.language_model import endpoint as endpoint_module
from sae_lens_hsae.interpret.language_model.naming import parse_label


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
        ("slow", "APITimeoutError", 2),
        ("garbage", "unreadable|malformed", 3),
        ("prose", "malformed", 3),
        ('<think>maybe {"label": "a draft"}', "ends within its thoughts", 3),
        ('{"label": 3}', "label must be", 3),
        ('{"label": ""}', "label must be", 3),
        ("[" * 100_000, "malformed", 3),
        (r'{"label": "emoji \ud83e"}', "half of a surrogate pair", 3),
        (r'{"label": "fine", "\udd14": 1}', "half of a surrogate pair", 3),
        ("cut", "cut off after max_tokens=200", 3),
    ],
)
def test_what_always_misbehaves_is_reported_and_never_guessed(server, tmp_path, monkeypatch, wrong, error, times):
    monkeypatch.setattr(endpoint_module, "MAX_RETRIES", 1)
    monkeypatch.setattr(endpoint_module, "TIMEOUT", 1.0)
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


@pytest.mark.parametrize("form", ["<think>\n{{hm}}\n</think>\n\n{}", "Here it is:\n```json\n{}\n```\nRight?"])
def test_thoughts_and_words_around_an_answer_do_not_count(server, tmp_path, form):
    server.answer = lambda *_: form.format(label("fine"))
    replies = Endpoint("m", tmp_path / "answers").ask(requests("good"), parse_label)
    assert (replies.answers, replies.n_malformed) == (["fine"], 0)


def test_an_interrupted_run_goes_on_and_a_repeated_one_costs_nothing(server, tmp_path):
    users = [f"text {i}" for i in range(12)]
    server.answer = lambda user, _: 401 if user == "text 7" else label(user)
    endpoint = Endpoint("m", str(tmp_path / "answers"), concurrency=1)
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


def test_a_model_whose_first_answer_is_cut_off_may_answer_at_greater_length(server, tmp_path):
    server.answer = lambda user, times: "cut" if user == "a" and times == 0 else label(user)
    replies = Endpoint("m", tmp_path / "answers").ask(requests("a", "b"), parse_label)
    assert replies.answers == ["a", "b"]
    assert [options["max_tokens"] for options in server.options] == [200, 4096, 4096]
