"""An age is one by the clock of whoever told the time: servers here are months away from this machine's clock.

Whether this machine is fast or slow is then nothing that a verdict could depend on.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes import client

from job.contract.documents import Claim
from job.contract.model import canonical_bytes
from job.run import Run, put_spec
from job.storage import Storage
from job.storage.opening import open_storage
from job.storage.s3_client import forget_client
from launcher.cluster import JOB_UID, Cluster
from launcher.evidence import Evidence
from launcher.explaining import find
from launcher.kube import Api
from launcher.listing import list_runs
from launcher.pending import pending_too_long
from launcher.runs import read_run
from launcher.status import Phase
from launcher.watching import look
from tests.launcher.runs import run_of
from tests.storage.faulty_s3 import Answer, Fault, FaultyS3, Request, Send, faulty_s3

Json = dict[str, Any]

RUN = "bot-0123456789"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FAR = timedelta(days=100)


# The store's


@pytest.fixture
def between(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """A server before the store, which shifts its clock as it is told to."""
    with faulty_s3(seaweed) as (server, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        forget_client()
        yield server
    forget_client()


def shifted(by: timedelta, later: timedelta = timedelta()) -> Fault:
    """The store's clock is so far from this machine's, and so much has passed since anything was written."""

    def fault(request: Request, send: Send) -> Answer:
        answer = send(request)
        shifts = {"last-modified": by, "date": by + later}
        moved = {
            name: format_datetime(parsedate_to_datetime(answer.headers[name]) + shift, usegmt=True)
            for name, shift in shifts.items()
            if name in answer.headers
        }
        return replace(answer, headers=answer.headers | moved)

    return fault


def begin(storage: Storage) -> Run:
    """A run that an attempt of another Job has just claimed."""
    run = run_of(storage, RUN)
    put_spec(run, b"config")
    claim = Claim(attempt=1, spec_sha256=run.spec_sha256, owner="o", job_uid="another")
    storage.put(run.keys.attempt(1).claim, canonical_bytes(claim))
    return run


@pytest.mark.parametrize("by", [-FAR, timedelta(), FAR], ids=["slow", "right", "fast"])
def test_a_heartbeat_is_as_old_as_the_store_says(by: timedelta, between: FaultyS3, bucket: str) -> None:
    storage = open_storage(bucket)
    begin(storage)
    for later, beats in ((0, True), (60, True), (95, False)):
        between.faults = [shifted(by, timedelta(seconds=later))]
        found = read_run(storage, RUN)
        assert found.lease_age is not None
        assert timedelta(seconds=later) <= found.lease_age < timedelta(seconds=later + 20)
        assert Evidence({}, None, found).beats == beats


def test_a_store_that_tells_no_time_is_taken_to_have_this_machines(between: FaultyS3, bucket: str) -> None:
    def no_date(request: Request, send: Send) -> Answer:
        answer = send(request)
        return replace(answer, headers={name: held for name, held in answer.headers.items() if name != "date"})

    storage = open_storage(bucket)
    begin(storage)
    between.faults = [no_date]
    assert Evidence({}, None, read_run(storage, RUN)).beats


# The API server's


class Server(ThreadingHTTPServer):
    """The part of an API server that is needed: one Job, its pods, and a clock of its own."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.now = NOON
        self.job: Json = {
            "metadata": {"name": RUN, "uid": "u", "creationTimestamp": ago(hours=2), "labels": {}},
            "spec": {},
            "status": {"startTime": ago(hours=2), "active": 1},
        }
        self.pods: list[Json] = []


def ago(**span: float) -> str:
    return f"{NOON - timedelta(**span):%Y-%m-%dT%H:%M:%SZ}"


def pod(phase: str, created: str, started: str | None = None, deleted: str | None = None) -> Json:
    statuses = [{"name": "trainer", "state": {"running": {"startedAt": started}}}] if started else []
    labels = {JOB_UID: "u"}
    return {
        "metadata": {"name": "p", "creationTimestamp": created, "deletionTimestamp": deleted, "labels": labels},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(self.server.now, usegmt=True)

    def do_GET(self) -> None:
        what = self.path.partition("?")[0].rpartition("/")[2]
        items = {"pods": self.server.pods, "jobs": [self.server.job], "events": []}.get(what)
        found = self.server.job if items is None else {"items": items, "metadata": {"resourceVersion": "1"}}
        if "PartialObjectMetadataList" in self.headers["Accept"]:
            found = found | {"items": [{"metadata": item["metadata"]} for item in items or ()]}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cluster(server: Server) -> Iterator[Cluster]:
    settings = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    caller = client.ApiClient(settings)
    yield Cluster(Api(caller), "ns")
    caller.rest_client.pool_manager.clear()


@pytest.mark.parametrize(
    ("seen", "phase", "reason"),
    [
        (pod("Running", ago(minutes=5), ago(seconds=80)), Phase.RUNNING, "Starting"),
        (pod("Running", ago(minutes=5), ago(seconds=100)), Phase.RUNNING, "NoHeartbeat"),
        (pod("Running", ago(hours=1), ago(hours=1), ago(seconds=50)), Phase.RUNNING, "NoHeartbeat"),
        (pod("Running", ago(hours=1), ago(hours=1), ago(seconds=70)), Phase.RECOVERING, "NodeLost"),
    ],
    ids=["starts", "has started", "is ending", "outlives its end"],
)
def test_a_pod_is_as_old_as_the_api_server_says(
    seen: Json, phase: Phase, reason: str, server: Server, cluster: Cluster, storage: Storage
) -> None:
    server.pods = [seen]
    status = look(RUN, storage, cluster)
    assert (status.phase, status.reason) == (phase, reason)
    findings = find(RUN, storage, cluster)
    assert abs(findings.now - NOON) < timedelta(seconds=20)


@pytest.mark.parametrize(("minutes", "is_late"), [(29, False), (31, True)])
def test_a_run_is_overdue_by_the_api_servers_clock_since_its_pod_was_made(
    minutes: float, is_late: bool, server: Server, cluster: Cluster, storage: Storage
) -> None:
    server.job["metadata"]["labels"] = {
        "app.kubernetes.io/name": "finetune",
        "app.kubernetes.io/managed-by": "finetune-launcher",
    }
    server.pods = [pod("Pending", ago(minutes=minutes))]
    told: list[str] = []
    for limit in (10, 0):  # also where it is not shown
        list_runs(storage, cluster, None, limit, on_overdue=told.append)
    assert told == ([RUN] * 2 if is_late else [])
    assert pending_too_long(cluster, timedelta(minutes=30)) == ([RUN] if is_late else [])


def test_a_run_that_is_shown_is_overdue_when_its_pod_cannot_be_made(
    server: Server, cluster: Cluster, storage: Storage
) -> None:
    server.job["status"]["active"] = 0
    told: list[str] = []
    list_runs(storage, cluster, None, 10, on_overdue=told.append)
    assert told == [RUN]
    server.job["status"]["failed"] = 1
    list_runs(storage, cluster, None, 10, on_overdue=told.append)
    assert told == [RUN], "it pauses between attempts"
