"""A hub on this machine for the real client: repositories as folders, read and written in the hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_loopback"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running hub.

    Attributes:
        root: holds each repository's files in ``owner/name``.
        endpoint: its address.
        requests: (method, last part of the path, status) of everything it was asked for.
        commits: (repository, message, paths of the files that it added) of every commit.
        private: repositories that were made private.
        refuses_commits: answer every commit with 403.
    """

    root: Path
    endpoint: str = ""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    commits: list[tuple[str, str, list[str]]] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    refuses_commits: bool = False

    def client_environment(self, home: Path) -> dict[str, str]:
        """Environment for a process whose client asks this hub, and keeps what it gets in ``home``."""
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        environment |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN}
        # Xet's protocol has a server of its own; without it the client uploads by LFS.
        return environment | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def run(self, folder: Path, *arguments: object) -> str:
        """What Python prints, in a process of its own: the client reads the hub's address when it is imported."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *map(str, arguments)],
            env=self.client_environment(folder / "hf"),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def running_hub(root: Path) -> Iterator[Hub]:
    """A hub that serves ``root`` until the block ends."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    uploaded: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_file(with_body=False)

        def do_GET(self) -> None:
            parts = self.parts
            if parts[:2] != ["api", "models"]:
                return self.send_file(with_body=True)
            repository = "/".join(parts[2:4])
            if parts[4:] == ["tree", "main"]:
                files = [file for file in (hub.root / repository).rglob("*") if file.is_file()]
                paths = [file.relative_to(hub.root / repository).as_posix() for file in files]
                return self.answer(200, [{"type": "file", "path": path, "oid": "0", "size": 0} for path in paths])
            return self.answer(200, {"id": repository, "private": repository in hub.private})

        def do_PUT(self) -> None:
            uploaded[self.parts[-1]] = self.body()
            self.answer(200, {})

        def do_POST(self) -> None:
            parts, body = self.parts, self.body()
            if parts[-1] == "batch" and parts[-3] == "lfs":
                return self.answer(200, {"transfer": "basic", "objects": [self.lfs_object(o) for o in self.json(body)]})
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "log in first"})
            if parts[-1] == "validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if parts == ["api", "repos", "create"]:
                wanted = json.loads(body)
                repository = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
                exists = (hub.root / repository).exists()
                if not exists and (wanted.get("private") or wanted.get("visibility") == "private"):
                    hub.private.add(repository)
                (hub.root / repository).mkdir(parents=True, exist_ok=True)
                return self.answer(409 if exists else 200, {"url": f"{hub.endpoint}/{repository}"})
            repository = "/".join(parts[2:4])
            if parts[4] == "preupload":
                files = json.loads(body)["files"]
                modes = {True: "lfs", False: "regular"}
                answer = [
                    {
                        "path": file["path"],
                        "uploadMode": modes[file["path"].endswith(".safetensors")],
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
                return self.answer(200, {"files": answer})
            assert parts[4] == "commit"
            if hub.refuses_commits:
                return self.answer(403, {"error": "this token may not write"})
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "deletedFile":
                    (hub.root / repository / value["path"]).unlink()
                    continue
                content = uploaded[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
                target = hub.root / repository / value["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            paths = [line["value"]["path"] for line in lines[1:] if line["key"] != "deletedFile"]
            hub.commits.append((repository, lines[0]["value"]["summary"], paths))
            url = f"{hub.endpoint}/{repository}/commit/{COMMIT}"
            return self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "hookOutput": "", "success": True})

        @property
        def parts(self) -> list[str]:
            return self.path.split("?")[0].strip("/").split("/")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def json(self, body: bytes) -> list[dict[str, Any]]:
            return json.loads(body)["objects"]

        def lfs_object(self, wanted: dict[str, Any]) -> dict[str, Any]:
            upload = {"href": f"{hub.endpoint}/lfs/{wanted['oid']}"}
            return {"oid": wanted["oid"], "size": wanted["size"], "actions": {"upload": upload}}

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            hub.requests.append((self.command, self.parts[-1], status))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, *, with_body: bool) -> None:
            parts = self.parts
            is_file_address = len(parts) > 4 and parts[2:4] == ["resolve", "main"]
            file = hub.root.joinpath(*parts[:2], *parts[4:])
            found = is_file_address and file.is_file()
            hub.requests.append((self.command, file.name, 200 if found else 404))
            content = file.read_bytes() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing, where the base class writes to stderr."""

    return Handler
