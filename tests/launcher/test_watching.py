"""What a watch tells, when a Job has had its time to start, and what the store alone tells where no API server answers."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from job.contract.documents import Cancelled, Claim, Outcome
from job.contract.errors import ConfigError, UnavailableError, UsageError
from job.contract.model import canonical_bytes
from job.run import Run, put_spec
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.explaining import why
from launcher.kube import Gone, Lost
from launcher.library import Launcher
from launcher.log_lines import LogLine
from launcher.logs import follow, so_far
from launcher.status import Phase, RunStatus
from launcher.watching import Sight, TimedOut, cannot_start, look, observe, read_event, statuses
from tests.launcher.runs import publish, run_of

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


# Where no API server answers


@pytest.fixture
def away(tmp_path: Path) -> Cluster:
    """A cluster that nobody reaches."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        """{apiVersion: v1, kind: Config, current-context: a, users: [{name: a, user: {}}],
 contexts: [{name: a, context: {cluster: a, user: a}}],
 clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]}"""
    )
    return Cluster.connect(str(kubeconfig))


def test_a_server_that_stays_away_is_given_up(away: Cluster) -> None:
    told: list[str] = []
    seen: list[Sight] = []
    with pytest.raises(UnavailableError, match="does not answer"):
        seen.extend(observe(away, "bot", 0.1, told.append, patience_seconds=1))
    assert len(told) == 1, "it is told once, and then given up"
    assert all(sight == Sight(None, None) for sight in seen)


def begin(storage: Storage) -> Run:
    """A run whose first attempt has claimed it and logged a line."""
    run = run_of(storage, "bot-0123456789")
    put_spec(run, b"config")
    attempt = run.keys.attempt(1)
    storage.put(attempt.claim, canonical_bytes(Claim(attempt=1, spec_sha256=run.spec_sha256, owner="o", job_uid="u")))
    storage.put(attempt.log(1), gzip.compress(b'{"event": "said", "at": "2026-03-01T12:00:00Z"}\n'))
    return run


def fail(run: Run) -> None:
    told = Outcome(code=78, name="CONFIG", stage="start", message="no such key", resolution="Mend it.")
    run.storage.put(run.keys.attempt(1).outcome, canonical_bytes(told))


def cancel(run: Run) -> None:
    told = Cancelled(by="ada", at=datetime.now(UTC), job_uid="u", attempt=1)
    run.storage.put(run.keys.cancelled, canonical_bytes(told))


def test_a_run_that_has_its_result_is_told_from_the_store_alone(away: Cluster, storage: Storage) -> None:
    run = begin(storage)
    publish(run)
    status = look(run.run_id, storage, away)
    assert (status.phase, status.terminal) == (Phase.SUCCEEDED, True)
    assert list(statuses(away, storage, run.run_id, lambda _: None)) == [status]
    lines = [list(log(away, storage, run.run_id)) for log in (so_far, follow)]
    assert (
        lines == [[LogLine("attempt 1", "2026-03-01T12:00:00Z", '{"event": "said", "at": "2026-03-01T12:00:00Z"}')]] * 2
    )
    assert why(run.run_id, storage, away) is None


@pytest.mark.parametrize("ended", [lambda _: None, cancel, fail], ids=["begun", "cancelled", "failed"])
def test_a_run_that_may_go_on_needs_its_cluster(
    away: Cluster, storage: Storage, ended: Callable[[Run], object]
) -> None:
    run = begin(storage)
    ended(run)
    for ask in (look, why):
        with pytest.raises(UnavailableError, match="does not answer"):
            ask(run.run_id, storage, away)
    for log in (so_far, follow):
        with pytest.raises(UnavailableError, match="does not answer"):
            list(log(away, storage, run.run_id))
    told: list[str] = []
    with pytest.raises(TimedOut):
        list(statuses(away, storage, run.run_id, told.append, every=0.1, timeout=1))
    assert len(told) == 1


def test_a_result_ends_a_wait_that_has_never_reached_the_cluster(away: Cluster, storage: Storage) -> None:
    run = begin(storage)
    waiting = statuses(away, storage, run.run_id, lambda _: publish(run), every=0.1, timeout=60)
    assert [status.phase for status in waiting] == [Phase.SUCCEEDED]


@pytest.mark.parametrize("text", ["", "garbage", "clusters: [", "[]", "clusters: 1"])
def test_a_kubeconfig_that_is_none_is_named(text: str, storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(UsageError, match=r"no cluster: .*/kubeconfig: "):
        Launcher(storage.uri, kubeconfig=str(tmp_path / "kubeconfig")).status("bot-0123456789")


def test_without_a_kubeconfig_the_store_alone_tells_a_run_that_has_ended(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    launcher = Launcher(storage.uri)
    run = begin(storage)
    for ask in (launcher.status, launcher.wait, launcher.logs, launcher.why):
        with pytest.raises(UsageError, match="no cluster"):
            ask(run.run_id)
    publish(run)
    assert launcher.status(run.run_id) == launcher.wait(run.run_id)
    assert launcher.status(run.run_id).phase == Phase.SUCCEEDED
    assert [one.source for one in launcher.logs(run.run_id, follow=True)] == ["attempt 1"]
    assert launcher.why(run.run_id) is None
    with pytest.raises(UsageError, match="/elsewhere"):
        Launcher(storage.uri, kubeconfig="/elsewhere").status(run.run_id)
