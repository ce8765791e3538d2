"""Runs of stand-in children, on a real S3 server."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from job.storage.opening import open_storage
from tests.cluster.node.attempts import adapter
from tests.job.conftest import Ended
from tests.reliability.reader import Reader
from tests.reliability.starts import ONE_BEAT, StandIn
from tests.storage.faulty_s3 import Request, faulty_s3
from tests.tiny import make_tiny_model, sums, tiny_config

Make = Callable[..., StandIn]


@dataclass(frozen=True)
class Uninterrupted:
    """A run as it goes when nothing happens to it."""

    adapter: str
    """The SHA-256 of its weights."""
    ended: Ended
    seconds: float
    requests: list[Request]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="session")
def inputs(seaweed: str, tiny_base: Path) -> str:
    """A root that holds a base model and rows."""
    root = f"s3://tests/{uuid4().hex}"
    storage = open_storage(root)
    for file in tiny_base.iterdir():
        storage.upload(file, f"base/{file.name}")
    storage.put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in sums(48)).encode())
    return root


@pytest.fixture(scope="session")
def stand_in(inputs: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a pod on a root of its own. Pods of the same config have the same run id, be it on several roots."""

    def make(training: dict[str, object] | None = None, seconds: float = 0.1, **keys: object) -> StandIn:
        config = tiny_config(
            tiny_base,
            {"max_steps": 6, "save_steps": 2, **(training or {})},
            **{
                "dataset": {"train": f"{inputs}/rows.jsonl"},
                "export": {"gguf": ["f16"]},
                "samples": {"prompts": [f"stand-in: seconds {seconds}"], "max_new_tokens": 8},
                "base_model": f"{inputs}/base/",
                **keys,
            },
        )
        name = f"configs/{uuid4().hex}.yaml"
        open_storage(inputs).put(name, config.model_dump_json().encode())
        scratch = tmp_path_factory.mktemp("pod") / "scratch"
        return StandIn(root=f"s3://tests/{uuid4().hex}", scratch=scratch, config=f"{inputs}/{name}")

    return make


@pytest.fixture(scope="session")
def uninterrupted(stand_in: Make, seaweed: str) -> Uninterrupted:
    """A run of the config that `stand_in()` has, and all that it asked of the store."""
    pod = stand_in()
    with Reader(pod.root), faulty_s3(seaweed) as (recorded, url):
        began = time.monotonic()
        ended = pod.start(AWS_ENDPOINT_URL_S3=url, FINETUNE_HEARTBEAT_SECONDS=ONE_BEAT)
        seconds = time.monotonic() - began
        requests = [replace(request, body=b"") for request in recorded.seen]
    assert ended.code == 0, ended.printed
    return Uninterrupted(adapter(open_storage(pod.root), pod.run), ended, seconds, requests)


@pytest.fixture(scope="session")
def large_base(inputs: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base model with a file that goes with every adapter, and goes up in parts."""
    storage = open_storage(inputs)
    for file in tiny_base.iterdir():
        storage.upload(file, f"large/{file.name}")
    merges = tmp_path_factory.mktemp("large") / "merges.txt"
    merges.write_bytes(b"a b\n" * (3 << 20))
    storage.upload(merges, "large/merges.txt")
    return f"{inputs}/large/"
