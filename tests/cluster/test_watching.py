"""Runs are followed whatever becomes of the connection, on a real API server behind one that misbehaves."""

import copy
import gc
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from examples.cluster.control_plane import ControlPlane
from job.contract.documents import Lease
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.kube import Gone, Json
from launcher.launching import Prepared, launch, put_documents
from launcher.manifest import ENDED_BECAUSE
from launcher.status import Phase, RunStatus
from launcher.watching import JobDeleted, Sight, TimedOut, observe, read_event, statuses
from tests.cluster.faults import (
    FaultyApi,
    cuts_off_after,
    ends_at_once,
    loses_the_answer,
    only,
    says,
    tells,
)
from tests.cluster.test_launching import fail

LIST, WATCH, PODS = r"/jobs\?(?!.*watch=true)", r"/jobs\?.*watch=true", r"/pods\?"
SECONDS = 60
"""No test is to hang."""


@pytest.fixture
def run_id(prepared: Prepared, storage: Storage, cluster: Cluster) -> str:
    """A run whose Job is there and at rest: nothing will start its pod."""
    launch(prepared, storage, cluster)
    deadline = time.monotonic() + SECONDS
    while not (job := cluster.get_job(prepared.run_id)) or not job["status"].get("active"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return prepared.run_id


@pytest.fixture
def trouble() -> list[str]:
    return []


def mark(cluster: Cluster, run_id: str) -> str:
    """Changes the Job; how to know it."""
    job, word = cluster.get_job(run_id), uuid4().hex
    assert job
    assert cluster.patch_job(run_id, job["metadata"]["uid"], {"metadata": {"annotations": {"mark": word}}})
    return word


def see(sights: Iterator[Sight], word: str) -> Sight:
    """The first sight of a change."""
    deadline = time.monotonic() + SECONDS
    for sight in sights:
        if sight.job and sight.job["metadata"]["annotations"].get("mark") == word:
            return sight
        assert time.monotonic() < deadline
    raise AssertionError("the sights ended")


def following(through: Cluster, run_id: str, trouble: list[str], **given: Any) -> Any:
    return closing(observe(through, run_id, 0.5, trouble.append, time.monotonic() + SECONDS, **given))


@pytest.mark.parametrize("fault", [tells(410), says(410)], ids=["in an event", "as an answer"])
def test_promise_34_a_watch_survives_410(
    fault: Any, api: FaultyApi, through: Cluster, cluster: Cluster, run_id: str, trouble: list[str]
) -> None:
    api.faults = [only("GET", WATCH, fault, times=1)]
    with following(through, run_id, trouble) as sights:
        assert next(sights).job
        see(sights, mark(cluster, run_id))
    assert api.count("GET", LIST) == 2, "listed again"
    assert trouble == [], "410 is no news"


def test_promise_34_a_watch_survives_a_silent_connection(
    api: FaultyApi, through: Cluster, cluster: Cluster, run_id: str, trouble: list[str]
) -> None:
    def falls_silent_in_the_first_watch(number: int, method: str, path: str) -> None:
        if api.count("GET", WATCH) == 1 and not api.silent:
            api.fall_silent()

    api.on_request = falls_silent_in_the_first_watch
    with following(through, run_id, trouble, watch_seconds=2) as sights:
        assert next(sights).job
        see(sights, mark(cluster, run_id))
    assert len(trouble) == 1


def test_promise_34_a_watch_survives_a_cut(
    api: FaultyApi, through: Cluster, cluster: Cluster, run_id: str, trouble: list[str]
) -> None:
    api.faults = [only("GET", WATCH, cuts_off_after(100), times=2)]
    with following(through, run_id, trouble) as sights:
        assert next(sights).job
        for _ in range(3):
            see(sights, mark(cluster, run_id))
    assert api.count("GET", WATCH) == 3


# A connection that is reset before its handshake leaves a socket open in Python's ssl (SSLSocket._create, its `recv(1)`).
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_promise_34_a_watch_survives_an_api_server_killed_and_started(
    plane: ControlPlane, through: Cluster, cluster: Cluster, run_id: str, trouble: list[str]
) -> None:
    with following(through, run_id, trouble) as sights:
        before = next(sights)
        plane.kill("apiserver")
        try:
            while not trouble:
                assert next(sights) == before, "what was seen last is told on"
        finally:
            plane.start("apiserver")
            plane.wait_until_ready()
        see(sights, mark(cluster, run_id))
    gc.collect()  # such a socket is this test's
    with pytest.raises(Gone):  # as this one itself says it, of what was before it
        list(map(read_event, cluster.watch_jobs("", "1", 1)))


def test_promise_39_429_is_obeyed(
    api: FaultyApi, through: Cluster, cluster: Cluster, run_id: str, trouble: list[str]
) -> None:
    waited: list[float] = []
    api.on_request = lambda number, method, path: waited.append(time.monotonic())
    api.faults = [only("GET", LIST, says(429, retry_after=1), times=5)]
    with following(through, run_id, trouble) as sights:
        assert next(sights).job
    assert api.count("GET", LIST) == 6
    assert all(later - sooner >= 1 for sooner, later in pairwise(waited[:6]))
    assert trouble == [], "the API server was there"


def test_503_is_trouble_that_passes(
    api: FaultyApi, through: Cluster, cluster: Cluster, run_id: str, trouble: list[str]
) -> None:
    api.faults = [only("GET", WATCH, says(503), times=2)]
    with following(through, run_id, trouble) as sights:
        assert next(sights).job
        see(sights, mark(cluster, run_id))
    assert trouble
    assert "503" in trouble[0]


def test_one_list_and_one_watch_a_minute(
    api: FaultyApi, through: Cluster, cluster: Cluster, run_id: str, trouble: list[str]
) -> None:
    with closing(observe(through, run_id, 0.1, trouble.append, time.monotonic() + SECONDS, watch_seconds=2)) as sights:
        for _ in sights:
            if api.count("GET", WATCH) == 4:
                break
    assert (api.count("GET", LIST), api.count("GET", PODS), len(api.seen)) == (1, 4, 9)
    with following(through, run_id, trouble) as sights:
        while not api.count("GET", "timeoutSeconds=60"):
            next(sights)


def test_watches_that_are_ended_at_once_are_not_a_storm(
    api: FaultyApi, through: Cluster, run_id: str, trouble: list[str]
) -> None:
    api.faults = [only("GET", WATCH, ends_at_once)]
    with closing(observe(through, run_id, 0.5, trouble.append, time.monotonic() + 3)) as sights:
        assert list(sights)
    assert api.count("GET", WATCH) <= 2


def test_a_run_without_a_job_is_watched_for_one(
    prepared: Prepared, storage: Storage, through: Cluster, cluster: Cluster, trouble: list[str]
) -> None:
    with following(through, prepared.run_id, trouble) as sights:
        assert next(sights) == Sight(None, [])
        launch(prepared, storage, cluster)
        while not next(sights).pods:
            pass


def follow(
    through: Cluster, storage: Storage, run_id: str, trouble: list[str], timeout: float = SECONDS, **given: Any
) -> Generator[RunStatus, None, None]:
    return statuses(through, storage, run_id, trouble.append, timeout=timeout, **given)


def beat(storage: Storage, run_id: str) -> None:
    storage.put(RunKeys(run_id).lease, canonical_bytes(Lease(attempt=1, heartbeat_at=datetime.now(UTC), stage="train")))


def delete(cluster: Cluster, run_id: str) -> None:
    job = cluster.get_job(run_id)
    assert job
    assert cluster.delete_job(run_id, job["metadata"]["uid"])


def test_promise_40_a_deleted_job_is_told_within_seconds(
    through: Cluster, cluster: Cluster, storage: Storage, run_id: str, trouble: list[str]
) -> None:
    beat(storage, run_id)  # a pod of it may still do so
    told = follow(through, storage, run_id, trouble, every=SECONDS)
    assert not next(told).terminal
    delete(cluster, run_id)
    with pytest.raises(JobDeleted, match="its Job was deleted"):
        list(told)


def test_a_job_that_is_replaced_is_followed_on(
    prepared: Prepared, through: Cluster, cluster: Cluster, storage: Storage, run_id: str, trouble: list[str]
) -> None:
    beat(storage, run_id)
    told = follow(through, storage, run_id, trouble)
    first = next(told)
    delete(cluster, run_id)
    while cluster.get_job(run_id):
        time.sleep(0.05)
    assert cluster.create_job(prepared.job)
    assert next(status for status in told if status.job_uid != first.job_uid).job_uid
    told.close()


def test_promise_38_a_run_ends_with_its_jobs_condition(
    through: Cluster, cluster: Cluster, storage: Storage, run_id: str, trouble: list[str]
) -> None:
    told = follow(through, storage, run_id, trouble)
    assert next(told).phase == Phase.PENDING
    fail(cluster, run_id)
    *_, last = told
    assert (last.phase, last.reason) == (Phase.FAILED, "DeadlineExceeded")


def test_the_timeout_counts_while_the_api_server_is_away(
    api: FaultyApi, through: Cluster, storage: Storage, run_id: str, trouble: list[str]
) -> None:
    api.faults = [only("GET", "", says(503))]
    with pytest.raises(TimedOut, match=run_id):
        list(follow(through, storage, run_id, trouble, timeout=2, every=SECONDS))
    assert len(trouble) == 1, "told once"


def test_a_run_that_may_be_queued_elsewhere_is_told_and_waited_for(
    prepared: Prepared, through: Cluster, storage: Storage, trouble: list[str]
) -> None:
    put_documents(replace(prepared, frozen=False), storage)  # as --freeze=pod leaves it
    told: list[RunStatus] = []
    with pytest.raises(TimedOut):
        told.extend(follow(through, storage, prepared.run_id, trouble, 2, every=0.5))
    assert {(status.phase, status.reason) for status in told} == {(Phase.PENDING, "NoJobHere")}


def annotations(job: Json | None) -> dict[str, str]:
    assert job
    found: dict[str, str] = job["metadata"]["annotations"]
    return found


def test_a_run_that_cannot_start_is_ended_and_says_why(
    api: FaultyApi, through: Cluster, cluster: Cluster, storage: Storage, run_id: str, trouble: list[str]
) -> None:
    api.faults = [only("PATCH", "", loses_the_answer, times=1)]
    *_, last = follow(through, storage, run_id, trouble, every=0.5, start_timeout=2)
    assert (last.phase, last.reason) == (Phase.FAILED, "DeadlineExceeded")
    assert "no pod of it ran within 2 s" in annotations(cluster.get_job(run_id))[ENDED_BECAUSE]
    assert api.count("PATCH", "") in (1, 2)


def test_a_run_that_has_just_started_is_not_ended(
    api: FaultyApi, through: Cluster, cluster: Cluster, storage: Storage, run_id: str, trouble: list[str]
) -> None:
    def changes_meanwhile(number: int, method: str, path: str) -> None:
        if method == "PATCH" and api.count("PATCH", "") == 1:
            mark(cluster, run_id)

    api.on_request = changes_meanwhile
    told = follow(through, storage, run_id, trouble, every=0.2, start_timeout=0.001)
    while not api.count("PATCH", ""):  # the server tells both times in whole seconds
        next(told)
    assert api.count("PATCH", "") == 1
    assert ENDED_BECAUSE not in annotations(cluster.get_job(run_id))
    told.close()


def test_a_queued_job_is_never_ended(
    prepared: Prepared, storage: Storage, through: Cluster, cluster: Cluster, trouble: list[str]
) -> None:
    queued = copy.deepcopy(prepared.job)
    queued["spec"]["suspend"] = True
    job = launch(replace(prepared, job=queued), storage, cluster).job
    assert job
    told: list[RunStatus] = []
    with pytest.raises(TimedOut):
        told.extend(follow(through, storage, prepared.run_id, trouble, 3, every=0.5, start_timeout=0.001))
    assert {status.phase for status in told} <= {Phase.QUEUED}
    assert ENDED_BECAUSE not in annotations(cluster.get_job(prepared.run_id))
    assert cluster.patch_job(prepared.run_id, job["metadata"]["uid"], {"spec": {"suspend": False}})
    *_, last = follow(through, storage, prepared.run_id, trouble, every=0.5, start_timeout=0.001)
    assert last.reason == "DeadlineExceeded", "once it may start, its time counts"
