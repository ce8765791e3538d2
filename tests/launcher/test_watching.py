"""What a watch tells, when a Job has had its time to start, and a server that is not there."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from job.contract.errors import ConfigError, UnavailableError
from launcher.cluster import Cluster
from launcher.kube import Gone, Lost
from launcher.status import Phase, RunStatus
from launcher.watching import cannot_start, observe, read_event

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def status(phase: Phase) -> RunStatus:
    return RunStatus(run_id="bot-0123456789", phase=phase, terminal=False, reason="R", message="m")


def job(started: float | None, suspended: str = "False") -> dict[str, Any]:
    """A Job that was to start so many seconds ago."""
    began = {} if started is None else {"startTime": (NOW - timedelta(seconds=started)).isoformat()}
    return {"status": began | {"conditions": [{"type": "Suspended", "status": suspended}]}}


@pytest.mark.parametrize("phase", Phase)
def test_only_a_pending_run_can_be_one_that_cannot_start(phase: Phase) -> None:
    assert cannot_start(job(61), status(phase), NOW, 60) == (phase == Phase.PENDING)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (job(61), True),
        (job(59), False),
        (job(None), False),
        (job(61, suspended="True"), False),
        ({}, False),
        ({"status": {"startTime": "2026-03-01T11:58:59Z"}}, True),
    ],
    ids=["late", "in time", "not yet begun", "leaving a queue", "without a status", "without conditions"],
)
def test_the_time_to_start_counts_from_the_jobs_own_start(seen: dict[str, Any], expected: bool) -> None:
    assert cannot_start(seen, status(Phase.PENDING), NOW, 60) == expected


def error(code: int) -> bytes:
    return json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "so it is"}}).encode()


@pytest.mark.parametrize(
    ("line", "raised"),
    [(error(410), Gone), (error(500), Lost), (error(429), Lost), (error(400), ConfigError), (b'{"type":"MOD', Lost)],
)
def test_a_watch_that_ends_badly_says_how(line: bytes, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        read_event(line)


def test_an_event_is_its_kind_and_its_object() -> None:
    assert read_event(b'{"type":"ADDED","object":{"kind":"Job"}}') == ("ADDED", {"kind": "Job"})


def test_a_server_that_stays_away_is_given_up(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        """{apiVersion: v1, kind: Config, current-context: a, users: [{name: a, user: {}}],
 contexts: [{name: a, context: {cluster: a, user: a}}],
 clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]}"""
    )
    told: list[str] = []
    sights = observe(Cluster.connect(str(kubeconfig)), "bot", 0.1, told.append, patience_seconds=1)
    with pytest.raises(UnavailableError, match="does not answer"):
        next(sights)
    assert len(told) == 1, "it is told once, and then given up"
