"""`python -m job`, started as a pod starts it, on a real S3 server and a tiny real model."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from job.contract.documents import Lease, Outcome
from job.storage.opening import open_storage
from tests.tiny import make_tiny_model, sums, tiny_config

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a start ended, and what it said."""

    code: int
    log: list[dict[str, Any]]
    printed: str
    outcome: Outcome

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == name]


@dataclass
class Pod:
    """A place to start the job in."""

    root: str
    scratch: Path
    config: str
    variables: Mapping[str, str] = field(default_factory=dict)
    package: Path = REPOSITORY

    def process(self, *flags: str, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
        """Starts it; the caller sees it end."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.package),
            **self.variables,
            "FINETUNE_CONFIG": self.config,
            "FINETUNE_RUNS": self.root,
            "FINETUNE_SCRATCH": str(self.scratch),
            "FINETUNE_TERMINATION_LOG": str(self.scratch.with_name("termination-log")),
            "FINETUNE_HEARTBEAT_SECONDS": "1",
            "FINETUNE_STALE_SECONDS": "4",
            **variables,
        }
        command = [*prefix, sys.executable, "-m", "job", *flags]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Waits for its end."""
        out, err = process.communicate(timeout=600)
        log = [json.loads(line) for line in out.splitlines()]
        termination_log = self.scratch.with_name("termination-log")
        outcome = Outcome.model_validate_json(termination_log.read_bytes())
        assert outcome.code == process.returncode, (out, err)
        return Ended(process.returncode, log, out + err, outcome)

    def start(self, *flags: str, prefix: tuple[str, ...] = (), **variables: str) -> Ended:
        """Runs it to its end."""
        return self.end(self.process(*flags, prefix=prefix, **variables))


def children_of(process: subprocess.Popen[str], pattern: str) -> list[int]:
    """The children of that command: checking a chat template starts a process, too."""
    listing = ["pgrep", "--parent", str(process.pid), "--full", pattern]
    found = subprocess.run(listing, capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def wait_for_child(process: subprocess.Popen[str], pattern: str = "job.train") -> int:
    deadline = time.monotonic() + 300
    while not (children := children_of(process, pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return children[0]


def wait_for_training(start: Pod, attempt: int) -> None:
    """Returns when an attempt's training loop has begun, by its heartbeat."""
    storage, deadline = open_storage(start.root), time.monotonic() + 300
    while True:
        for stat in storage.list("runs/"):
            if stat.key.endswith("/lease.json") and (found := storage.get(stat.key)):
                lease = Lease.model_validate_json(found[0])
                if (lease.attempt, lease.stage) == (attempt, "train") and lease.step is not None:
                    return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def pod(bucket: str, tiny_base: Path, llama_cpp: Path, tmp_path: Path) -> Callable[..., Pod]:
    """Puts a base model, rows and a config into the store; the pod that would train them."""

    def make(training: dict[str, object] | None = None, rows: bytes | None = None, **keys: object) -> Pod:
        storage = open_storage(bucket)
        base = Path(str(keys.pop("base", tiny_base)))
        for file in base.iterdir():
            storage.upload(file, f"models/tiny/{file.name}")
        lines = "".join(json.dumps(row) + "\n" for row in sums(48)).encode() if rows is None else rows
        storage.put("data/train.jsonl", lines)
        dataset = {"train": f"{bucket}/data/train.jsonl", **dict(keys.pop("dataset", {}))}  # type: ignore[call-overload]
        config = tiny_config(base, {"max_steps": 4, **(training or {})}, dataset=dataset, **keys)
        text = config.model_dump(mode="json") | {"base_model": f"{bucket}/models/tiny/"}
        storage.put("configs/tiny.yaml", json.dumps(text).encode())
        variables = {"FINETUNE_LLAMA_CPP": str(llama_cpp)}
        return Pod(f"{bucket}/runs-of-a-team", tmp_path / "scratch", f"{bucket}/configs/tiny.yaml", variables)

    return make
