"""A small server that answers as a hub's API does."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
LARGE = 1000
"""A file of more bytes than this is kept as a large one, by its SHA-256."""


@dataclass
class Hub:
    """Repositories by kind and name: their files at one commit."""

    repositories: dict[tuple[str, str], dict[str, bytes]]
    refused: int | None = None
    """The status that every request gets instead."""
    failures: int = 0
    """How many requests are answered with 503 first."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, bytes, str]:
        if self.failures:
            self.failures -= 1
            return 503, b"", ""
        if self.refused:
            return self.refused, b"", "RepoNotFound" if self.refused in (401, 404) else ""
        api = re.match(r"^/api/(model|dataset)s/(\w+/[\w.-]+)(?:/(revision|tree)/([^?]+))?(\?.*)?$", path)
        file = re.match(r"^/(datasets/)?(\w+/[\w.-]+)/resolve/(\w+)/(.+)$", path)
        if api and (api[1], api[2]) in self.repositories:
            return self.described(
                api[2], self.repositories[api[1], api[2]], api[3] == "tree", (api[4] or "main").rstrip("/")
            )
        if file:
            files = self.repositories.get(("dataset" if file[1] else "model", file[2]), {})
            if file[4] in files and file[3] == COMMIT:
                return 200, files[file[4]], ""
        return 404, b"", "RepoNotFound"

    def described(self, name: str, files: dict[str, bytes], tree: bool, revision: str) -> tuple[int, bytes, str]:
        if revision not in ("main", "v1", COMMIT):
            return 404, b"", "RevisionNotFound"
        if not tree:
            return 200, json.dumps({"id": name, "sha": COMMIT}).encode(), ""
        return 200, json.dumps([entry(path, body) for path, body in files.items()]).encode(), ""


def entry(path: str, body: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
    described: dict[str, object] = {"type": "file", "path": path, "size": len(body), "oid": blob}
    if len(body) > LARGE:
        described["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return described


@contextmanager
def serving(repositories: dict[tuple[str, str], dict[str, bytes]]) -> Iterator[Hub]:
    """A hub with these repositories, at its `url`."""
    served = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append((self.path, self.headers.get("authorization")))
            status, body, code = served.answer(self.path)
            self.send_response_only(status)
            self.send_header("content-length", str(len(body)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()
