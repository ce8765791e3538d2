"""Inputs from a hub, against a small server that answers as the hub's API does."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from job import hub
from job.contract.config import RunConfig
from job.contract.documents import Spec
from job.contract.errors import ConfigError, DataError, JobError, NoInputError, PermissionDenied, UnavailableError
from job.inputs import download_bytes, fetch_base_model, fetch_dataset, freeze

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


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub(
        {
            ("model", "org/base"): {
                "config.json": b"{}",
                "tokenizer.json": b"{}",
                "model.safetensors": b"w" * 5000,
                "pytorch_model.bin": b"p" * 5000,
                ".gitattributes": b"x",
                "onnx/model.onnx": b"o" * 5000,
            },
            ("dataset", "org/rows"): {
                "README.md": b"# rows",
                "dataset_infos.json": b"{}",
                "data/train-00000-of-00002.parquet": b"1" * 2000,
                "data/train-00001-of-00002.parquet": b"2" * 20,
                "data/test-00000-of-00001.parquet": b"3" * 20,
            },
            ("dataset", "org/plain"): {"a.jsonl": b"1", "b.jsonl": b"2", "README.md": b"#"},
            ("dataset", "org/coded"): {"coded.py": b"import os", "train.jsonl": b"1"},
            ("dataset", "org/empty"): {"README.md": b"#"},
        }
    )

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
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def spec_of(train: str | list[str], base: str = "hf://org/base") -> Spec:
    config = {"name": "t", "base_model": base, "dataset": {"train": train}, "training": {"max_steps": 1}}
    return freeze(RunConfig.model_validate(config), None, "0")


@pytest.mark.parametrize(
    ("reference", "files"),
    [
        ("org/rows", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        ("org/rows@v1:test", ["data/test-00000-of-00001.parquet"]),
        ("org/plain", ["a.jsonl", "b.jsonl"]),
    ],
)
def test_a_reference_freezes_its_commit_and_the_files_of_its_split(
    served: Hub, reference: str, files: list[str]
) -> None:
    spec = spec_of(f"hf://{reference}")
    name = reference.partition("@")[0].partition(":")[0]
    assert [file.uri for file in spec.dataset.train] == [f"hf://{name}@{COMMIT}/{file}" for file in files]
    assert spec.base_model.commit == COMMIT
    assert {token for _, token in served.asked} == {"Bearer hf_test"}


def test_what_was_frozen_is_what_is_fetched(served: Hub, tmp_path: Path) -> None:
    spec = spec_of(["hf://org/rows", "hf://org/plain"])
    moved: list[int] = []
    base = fetch_base_model(spec, tmp_path / "base", moved.append)
    rows = fetch_dataset(spec, tmp_path / "data", moved.append)
    assert {path.name: path.stat().st_size for path in base.iterdir()} == {
        "config.json": 2,
        "tokenizer.json": 2,
        "model.safetensors": 5000,
    }
    assert [path.read_bytes()[:1] for path in rows.train] == [b"1", b"2", b"1", b"2"]
    assert [path.suffix for path in rows.train] == [".parquet", ".parquet", ".jsonl", ".jsonl"]
    assert sum(moved) == sum(download_bytes(spec)[:2])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_what_was_frozen_is_refused(served: Hub, name: str, tmp_path: Path) -> None:
    spec = spec_of("hf://org/plain")
    files = served.repositories["model", "org/base"]
    files[name] = b"!" * len(files[name])
    with pytest.raises(DataError, match=f"hf://org/base@{COMMIT}/{name}"):
        fetch_base_model(spec, tmp_path / "base")
    assert not (tmp_path / "base" / name).exists()


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, PermissionDenied), (403, PermissionDenied), (404, NoInputError), (400, NoInputError)],
)
def test_a_refusal_has_its_kind(served: Hub, status: int, kind: type[JobError], tmp_path: Path) -> None:
    spec = spec_of("hf://org/plain")
    served.refused = status
    with pytest.raises(kind, match="hf://org/plain"):
        spec_of("hf://org/plain", base="hf://org/plain")
    with pytest.raises(kind, match="hf://org/base@"):
        fetch_base_model(spec, tmp_path)


def test_a_hub_that_is_busy_is_asked_again(served: Hub, tmp_path: Path) -> None:
    spec = spec_of("hf://org/plain")
    served.failures = 1
    assert fetch_dataset(spec, tmp_path).train[0].read_bytes() == b"1"


@pytest.mark.parametrize(
    ("reference", "kind", "text"),
    [
        ("hf://org/coded", DataError, "coded.py"),
        ("hf://org/empty", NoInputError, "no file of rows"),
        ("hf://org/rows:validation", NoInputError, "no file of rows"),
        ("hf://org/rows@v2", NoInputError, "404"),
        ("hf://org/nothing", NoInputError, "404"),
        ("hf://rows", ConfigError, "organisation/name"),
        ("hf://org/rows:train[:10]", ConfigError, "organisation/name"),
    ],
)
def test_what_a_hub_cannot_give_is_said(served: Hub, reference: str, kind: type[JobError], text: str) -> None:
    with pytest.raises(kind, match=re.escape(reference)) as caught:
        spec_of(reference)
    assert text in caught.value.message


def test_a_hub_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="hf://org/base"):
        hub.list_files("hf://org/base", "model")
