"""Follows a run: one watch of its Job, whatever becomes of the connection, and a status for every change.

A thread follows the API server, so that whoever waits has a clock that runs on while the server is silent or away.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from queue import Empty, SimpleQueue

from job.contract.errors import JobError, UnavailableError
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.evidence import at, condition_of, moment
from launcher.kube import Answer, Gone, Json, Lost
from launcher.manifest import ENDED_BECAUSE
from launcher.runs import no_such_run, read_run
from launcher.status import Phase, RunStatus, ended_by_store, read_status

_WATCH_SECONDS, _PATIENCE_SECONDS = 60, 600.0
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 10.0
_SHORTEST_WATCH_SECONDS = 1.0

OnTrouble = Callable[[str], object]
"""Told what is wrong, once until all is well again."""


class JobDeleted(JobError):
    """The Job of a run that has not ended is gone."""


class TimedOut(JobError):
    """The run has not ended in the given time."""


@dataclass(frozen=True)
class Sight:
    """What the API server tells of a run."""

    job: Json | None
    pods: list[Json] | None
    """None before it has told anything."""


_NOTHING_SEEN = Sight(None, None)


def look(run_id: str, storage: Storage, cluster: Cluster) -> RunStatus:
    """The run's status now; from the store alone where the API server is away and the run has ended.

    Raises:
        NoInputError: there is no such run.
        UnavailableError: the store cannot be reached, or only the API server could tell.
    """
    try:
        sight = _sight(cluster, cluster.get_job(run_id))
    except UnavailableError:
        if ended := ended_by_store(read_run(storage, run_id)):
            return ended
        raise
    status = read_status(sight.job, sight.pods, read_run(storage, run_id), cluster.now())
    if status.phase == Phase.UNKNOWN:
        raise no_such_run(run_id, storage.uri)
    return status


def statuses(
    cluster: Cluster,
    storage: Storage,
    run_id: str,
    on_trouble: OnTrouble,
    every: float = 10.0,
    timeout: float | None = None,
    start_timeout: float | None = None,
) -> Generator[RunStatus, None, None]:
    """The run's status now, at every change of its Job, and every few seconds, up to the one that it ends with.

    Args:
        cluster: where its Job is.
        storage: the root of runs.
        run_id: whose.
        on_trouble: told when the API server or the store is away, which is borne for ten minutes.
        every: seconds after which the store is read again, whatever the Job does.
        timeout: seconds to the end at the latest.
        start_timeout: seconds after which a Job is ended of which no pod has run. The time in a queue does not count.

    Raises:
        NoInputError: there is no such run.
        JobDeleted: there is no Job any more, and no other in its place.
        TimedOut: the time is over.
        UnavailableError: the API server or the store stayed away. Where the store alone tells an end, that is the end.
    """
    until = math.inf if timeout is None else time.monotonic() + timeout
    to_start = math.inf if start_timeout is None else start_timeout
    store = _Patience(_PATIENCE_SECONDS, on_trouble)
    seen = False
    with closing(observe(cluster, run_id, every, on_trouble, until)) as sights:
        for sight in sights:
            try:
                documents = read_run(storage, run_id)
                if sight.pods is None:
                    status = ended_by_store(documents)
                else:
                    status = read_status(sight.job, sight.pods, documents, cluster.now())
                if status and sight.job and cannot_start(sight.job, status, cluster.now(), to_start):
                    _end(sight.job, f"no pod of it ran within {to_start:g} s: {status.message}", cluster)
            except UnavailableError as error:
                store.bear(error)
                continue
            store.renew()
            if status is None:
                continue
            if status.phase == Phase.UNKNOWN and not seen:
                raise no_such_run(run_id, storage.uri)
            yield status
            if status.terminal:
                return
            if seen and sight.job is None:
                raise JobDeleted(f"{run_id}: its Job was deleted", status.resolution)
            seen = seen or sight.job is not None
    raise TimedOut(f"{run_id} has not ended within {timeout:g} s", f"It goes on; `finetune wait {run_id}` waits again.")


def observe(
    cluster: Cluster,
    run_id: str,
    every: float,
    on_trouble: OnTrouble,
    until: float = math.inf,
    watch_seconds: int = _WATCH_SECONDS,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> Generator[Sight, None, None]:
    """What is to be seen of a run: now, at every change of its Job, and the same again after `every` seconds of silence.

    While the API server is away from the beginning that is nothing.

    Args:
        cluster: where its Job is.
        run_id: its name.
        every: seconds.
        on_trouble: told when the API server is away.
        until: when to stop, by the monotonic clock.
        watch_seconds: after which the pods are listed and the watch is renewed; 5 s later it counts as lost.
        patience_seconds: for how long the API server may stay away.

    Raises:
        UnavailableError: it stayed away.
    """
    told: SimpleQueue[Sight | Exception] = SimpleQueue()
    over = threading.Event()
    given = (cluster, run_id, watch_seconds, over, told.put)
    threading.Thread(target=_follow, args=given, name="watch", daemon=True).start()
    server = _Patience(patience_seconds, on_trouble)
    newest: Sight | None = None
    try:
        while (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                news = told.get(timeout=min(every, left))
                if isinstance(news, Sight):
                    server.renew()
                    newest = news
                elif isinstance(news, UnavailableError):
                    server.bear(news)
                    newest = newest or _NOTHING_SEEN
                else:
                    raise news
            if newest:
                yield newest
    finally:
        over.set()  # the thread ends with the next line, or with its watch


def cannot_start(job: Json, status: RunStatus, now: datetime, start_timeout: float) -> bool:
    """Whether no pod of a Job has run though it was to start so many seconds ago, by the API server's clock. Pure."""
    # startTime is set anew when it leaves a queue, in one step with the end of the condition Suspended.
    started = moment(at(job, "status", "startTime"))
    if status.phase != Phase.PENDING or condition_of(job, "Suspended") or not started:
        return False
    return (now - started).total_seconds() > start_timeout


def _end(job: Json, reason: str, cluster: Cluster) -> None:
    """Lets the Job's deadline pass, and notes why; unless it has changed since it was seen: then it may have started."""
    metadata = job["metadata"]
    change = {
        "metadata": {"annotations": {ENDED_BECAUSE: reason}, "resourceVersion": metadata["resourceVersion"]},
        "spec": {"activeDeadlineSeconds": 1},
    }
    cluster.patch_job(metadata["name"], metadata["uid"], change)


class _Patience:
    """Bears trouble for so many seconds, and tells of it once."""

    def __init__(self, seconds: float, on_trouble: OnTrouble) -> None:
        self._seconds, self._on_trouble = seconds, on_trouble
        self.renew()

    def renew(self) -> None:
        self._well, self._told = time.monotonic(), False

    def bear(self, error: UnavailableError) -> None:
        """Raises the error once it has lasted too long."""
        if time.monotonic() - self._well > self._seconds:
            raise error
        if not self._told:
            self._on_trouble(error.message)
            self._told = True


def _follow(
    cluster: Cluster, run_id: str, watch_seconds: int, over: threading.Event, tell: Callable[[Sight | Exception], None]
) -> None:
    """Tells sights and errors; the last one is an error that is not worth another try."""
    pause = _PAUSE_SECONDS
    while not over.is_set():
        try:
            with closing(_history(cluster, run_id, watch_seconds)) as sights:
                for sight in sights:
                    if over.is_set():
                        return
                    tell(sight)
                    pause = _PAUSE_SECONDS
        except Gone:
            pass
        except UnavailableError as error:
            tell(error)
        except Exception as error:
            tell(error)
            return
        over.wait(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _history(cluster: Cluster, run_id: str, watch_seconds: int) -> Generator[Sight, None, None]:
    """One list, and watch after watch from there; until the Job is deleted, or a watch is ended as soon as it has begun.

    Then it is asked anew a moment later: another Job may have taken its place, or the store tells that it was cancelled.
    """
    selector = f"metadata.name={run_id}"
    found, version = cluster.jobs(selector)
    job = found[0] if found else None
    while True:
        yield _sight(cluster, job)
        began = time.monotonic()
        for line in cluster.watch_jobs(selector, version, watch_seconds):
            kind, told = read_event(line)
            version = told["metadata"]["resourceVersion"]
            if kind == "DELETED":
                return
            if kind != "BOOKMARK":
                job = told
                yield _sight(cluster, job)
        if time.monotonic() - began < _SHORTEST_WATCH_SECONDS:
            return


def read_event(line: bytes) -> tuple[str, Json]:
    """A line of a watch: its type and its object. Pure.

    Raises:
        Lost: the line broke off, or the server asks to come again.
        Gone: list again. In the midst of a watch this, too, is told so.
    """
    try:
        event = json.loads(line)
    except ValueError as error:
        raise Lost(f"the API server's watch broke off: {error}", "Try again later.") from error
    kind, told = event["type"], event["object"]
    if kind == "ERROR":
        raise Answer(told.get("code", 500), json.dumps(told).encode()).error()
    return kind, told


def _sight(cluster: Cluster, job: Json | None) -> Sight:
    return Sight(job, cluster.pods(job["metadata"]["uid"]) if job else [])
