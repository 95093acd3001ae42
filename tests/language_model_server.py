"""A language model's endpoint on this machine, for the real client: it answers what a test says, and misbehaves."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

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
