"""Scratch runs out of space, at each stage that writes there, long after the look at it before the first byte."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from job.contract.exits import Exit
from tests.reliability.conftest import Make
from tests.reliability.reader import Reader
from tests.reliability.starts import StandIn
from tests.storage.faulty_s3 import after, faulty_s3, only

SIZE = 4 << 30
"""Bytes that the run is promised. A tmpfs takes what is written and no more."""


@dataclass(frozen=True)
class Disk:
    """A file system that can be made smaller while it is in use."""

    path: Path

    def leave(self, free: int) -> None:
        """From now on so many bytes are free."""
        while not self.resize(shutil.disk_usage(self.path).used + free):
            pass  # more was written in between than that

    def resize(self, size: int) -> bool:
        """Whether what is used fits in."""
        remount = ["mount", "-o", f"remount,size={size}", str(self.path)]
        return subprocess.run(remount, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root, and the right to mount")
    yield Disk(path)
    subprocess.run(["umount", path], check=True)


@dataclass(frozen=True)
class Full:
    """At a request scratch has only so many KiB left."""

    method: str
    path: str
    free: int
    stage: str
    """The one that this ends."""
    told: str
    """Where it says there was no space."""
    save_steps: int | None = None


FULL = {
    "download": Full("GET", "/base/model.safetensors", 64, "download", "/inputs/base/model.safetensors"),
    "rows": Full("GET", "/rows.jsonl", 12, "download", "/rows: "),
    "checkpoint": Full("PUT", "/canary/upload-rate", 512, "train", "/checkpoint-2/", save_steps=2),
    "adapter": Full("PUT", "/canary/upload-rate", 512, "train", "/.adapter/"),
    "adapter to publish": Full("PUT", "/canary/upload-rate", 5000, "train", "/publish/lora/"),
    "export": Full("PUT", "/lora/published.json", 8, "export", ""),
    "report": Full("PUT", "/gguf/tiny", 8, "publish", ""),
}


@pytest.mark.parametrize("full", FULL.values(), ids=FULL)
def test_no_space_left(stand_in: Make, seaweed: str, disk: Disk, full: Full) -> None:
    pod = on(disk, stand_in(seconds=0.3, training={"save_steps": full.save_steps}))

    with faulty_s3(seaweed) as (store, url), Reader(pod.root) as reader:
        store.faults = [only(full.method, after(lambda: disk.leave(full.free << 10)), 1, full.path)()]
        ended = pod.start(AWS_ENDPOINT_URL_S3=url)
        reader.settle()
        assert (ended.code, ended.outcome.stage) == (Exit.IO, full.stage), ended.printed
        assert "No space left" in ended.outcome.message
        assert full.told in ended.outcome.message
        assert reader.marks("result.json") == reader.marks("latest.json") == []
        published = reader.marks("published.json")
        assert len(published) == (full.stage in ("export", "publish"))
        assert list(disk.path.rglob("*.safetensors")) == []

        assert disk.resize(SIZE)
        assert pod.start().code == 0
    assert len(reader.marks("result.json")) == 1
    if published:
        assert reader.marks("published.json") == published


def on(disk: Disk, pod: StandIn) -> StandIn:
    """The pod with its scratch there."""
    pod.scratch = disk.path / "scratch"
    return pod
