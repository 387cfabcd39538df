"""A small Hugging Face hub on loopback: what huggingface_hub asks of one, and no more."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """One model repository with one commit. Set `status` to make every request fail with it."""

    repository: str
    folder: Path
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    revisions: tuple[str, ...] = ("main", "v1")
    status: int | None = None
    token: str | None = None
    requests: list[str] = field(default_factory=list)  # "HEAD config.json", ...
    url: str = ""
    made: list[dict[str, Any]] = field(default_factory=list)  # repositories, as they were asked for

    def take(self, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for what is posted: a repository, a branch, a commit."""
        if self.status is not None:
            return self.status, {}, b"refused"
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, {}, b"who are you?"
        answer: dict[str, Any] = {}
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            answer = {"url": f"{self.url}/{self.repository}", "name": self.repository}
        elif "/branch/" in path:
            self.revisions = (*self.revisions, path.rpartition("/")[2])
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **modes} for file in files]}
        elif "/commit/" in path:
            self._commit(body)
            url = f"{self.url}/{self.repository}/commit/{self.commit}"
            answer = {"success": True, "commitOid": self.commit, "commitUrl": url}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    def _commit(self, body: bytes) -> None:
        for line in filter(None, body.splitlines()):
            record = json.loads(line)
            if record["key"] == "file":
                content = base64.b64decode(record["value"]["content"])
                (self.folder / record["value"]["path"]).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / record["value"]["path"]).write_bytes(content)

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for /REPOSITORY/resolve/REVISION/FILE."""
        if self.status is not None:
            return self.status, {}, b"refused"
        if not path.startswith(f"/{self.repository}/resolve/"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b"no such repository"
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "GatedRepo"}, b"gated"
        revision, _, name = path.removeprefix(f"/{self.repository}/resolve/").partition("/")
        if revision not in (*self.revisions, self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"no such revision"
        file = self.folder / name
        headers = {"X-Repo-Commit": self.commit}
        if not file.is_file():
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b"no such file"
        body = file.read_bytes()
        digest = hashlib.sha256(body).hexdigest()
        return 200, headers | {"ETag": f'"{digest}"', "X-Linked-Size": str(len(body))}, body


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path.rpartition('/')[2]}")
            status, headers, body = hub.answer(self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, headers, answer = hub.take(path, self.headers.get("Authorization"), body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
