"""Bounds on attempts and on silence, by the real supervisor with a training child that does as the test says."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from job.contract.documents import Lease
from job.storage.opening import open_storage
from tests.job.conftest import REPOSITORY, Pod, wait_for_training

Make = Callable[..., Pod]

CHILD = """
import sys, threading
from job.contract.errors import DeviceError
from job.contract.events import Training
from job.telling import run_child
def fail(plan, teller):
    raise DeviceError("the GPU has fallen off the bus")
def hang(plan, teller):
    teller.tell(Training(step=0, of=9))
    wait_for_ever()
def wait_for_ever():
    lock = threading.Lock()
    with lock:
        lock.acquire()
sys.exit(run_child({work}, sys.argv[1:]))
"""


@pytest.fixture
def with_child(pod: Make, tmp_path: Path) -> Callable[[str], Pod]:
    """A pod whose package has another `job/train.py`."""

    def make(work: str) -> Pod:
        start = pod()
        package = shutil.copytree(REPOSITORY / "job", tmp_path / "package" / "job")
        (package / "train.py").write_text(CHILD.format(work=work))
        return replace(start, package=package.parent)

    return make


def test_a_job_that_never_gets_anywhere_ends(with_child: Callable[[str], Pod]) -> None:
    start = with_child("fail")
    start.variables = {**start.variables, "FINETUNE_JOB_UID": "u1", "FINETUNE_MAX_IDLE_ATTEMPTS": "2"}
    assert start.start().code == 71
    runs = open_storage(start.root)
    left = [stat.key for stat in runs.list("runs/") if stat.key.endswith(("/claim.json", "/outcome.json"))]
    for key in left:  # a second attempt that ended as the first did
        found = runs.get(key)
        assert found
        runs.put(key.replace("/attempts/1/", "/attempts/2/"), found[0])
    ended = start.start()
    assert (ended.code, ended.outcome.name) == (70, "BUG")
    assert "1 with 71 DEVICE (train), 2 with 71 DEVICE (train)" in ended.outcome.message
    assert "the GPU has fallen off the bus" in ended.outcome.message
    assert "launch --resume" in ended.outcome.resolution
    assert not [stat.key for stat in runs.list("runs/") if "/attempts/3/" in stat.key]


def test_training_that_hangs_ends_with_71_and_its_stacks_while_the_heart_goes_on_beating(
    with_child: Callable[[str], Pod],
) -> None:
    start = with_child("hang")
    process = start.process(FINETUNE_WATCHDOG_SECONDS="8")
    wait_for_training(start, 1)
    runs, deadline = open_storage(start.root), time.monotonic() + 60
    beats: set[datetime] = set()
    [key] = [stat.key for stat in runs.list("runs/") if stat.key.endswith("/lease.json")]
    while len(beats) < 3:
        found = runs.get(key)
        assert found
        beats.add(Lease.model_validate_json(found[0]).heartbeat_at)
        assert time.monotonic() < deadline, "the heart stood still"
        time.sleep(0.1)
    ended = start.end(process)
    assert (ended.code, ended.outcome.name, ended.outcome.stage) == (71, "DEVICE", "train")
    assert "hangs" in ended.outcome.message
    assert any("in wait_for_ever" in line["text"] for line in ended.events("said"))
