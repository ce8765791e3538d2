"""The log of a run, across its attempts: from its pods, and from the store where they are gone."""

import time
from collections.abc import Iterator
from datetime import datetime

from job.contract.documents import Claim
from job.contract.errors import DataError, NoInputError, UnavailableError
from job.contract.keys import RunKeys
from job.contract.model import read_document
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.evidence import has_ended
from launcher.kube import READ_SECONDS, Json
from launcher.log_lines import Deduplicator, Gap, Told, chunk_lines
from launcher.pod_log import Pace, PodLog, PodState
from launcher.runs import newest_attempt, no_such_run, read_run
from launcher.status import Phase, RunStatus, ended_by_store, read_status

_PACE = Pace(poll_seconds=3.0, silence_seconds=READ_SECONDS)
"""A run's end is told within ten seconds: two looks, and a last read of what a stream that hangs has kept back."""
_OUTAGE_SECONDS = 300.0


def stored(storage: Storage, run_id: str) -> Iterator[Told]:
    """The lines that the store has of all attempts, in order, and the gaps where a chunk is damaged: needs no cluster."""
    for number in range(1, newest_attempt(storage, run_id) + 1):
        yield from _StoredLog(storage, run_id, number).more()


def so_far(cluster: Cluster, storage: Storage, run_id: str) -> Iterator[Told]:
    """The log as far as it goes: of each attempt from its pod, or from the store where that is gone.

    Raises:
        NoInputError: there is no such run.
        UnavailableError: the API server or the store cannot be reached.
    """
    run = _Run(cluster, storage, run_id, _PACE)
    for source in run.sources():
        yield from run.tell(source, to_the_end=False)


def follow(cluster: Cluster, storage: Storage, run_id: str, pace: Pace = _PACE) -> Iterator[Told]:
    """The log from its beginning until the run has ended: each line once, and a gap where some may be missing.

    Args:
        cluster: where its Job is.
        storage: the root of runs.
        run_id: whose log.
        pace: how long is waited.

    Raises:
        NoInputError: there is no such run.
        UnavailableError: the API server cannot be reached for minutes, or the store for as long as it is to be asked.
    """
    run = _Run(cluster, storage, run_id, pace)
    while True:
        is_over = run.status.terminal  # then all that is to be told is there
        for source in run.sources():
            yield from run.tell(source, to_the_end=True)
        if is_over:
            return
        if not run.status.terminal:
            time.sleep(pace.poll_seconds)
            run.look()


class _Run:
    """How a run is, looked at now and then, and what was told of it."""

    def __init__(self, cluster: Cluster, storage: Storage, run_id: str, pace: Pace) -> None:
        self._cluster, self._storage, self._run_id, self._pace = cluster, storage, run_id, pace
        self._claims: list[tuple[Claim, datetime]] = []
        self._stored: dict[int, _StoredLog] = {}
        self._told: set[str] = set()
        self._pods: dict[str, Json] = {}
        self.status: RunStatus
        self._begin()

    def _begin(self) -> None:
        """Looks for the first time. Of a run that has ended the store has the log, too, where the API server is away."""
        try:
            self._look()
        except UnavailableError:
            ended = ended_by_store(read_run(self._storage, self._run_id))
            if ended is None:
                raise
            self.status = ended

    def look(self) -> None:
        """Looks again. In an outage what was seen before stands for a while."""
        try:
            self._look()
        except UnavailableError:
            if time.monotonic() - self._looked > _OUTAGE_SECONDS:
                raise

    def _look(self) -> None:
        # The claims before the pods: then each pod of a claim is seen, or gone.
        keys = RunKeys(self._run_id)
        while found := self._storage.get(key := keys.attempt(len(self._claims) + 1).claim):
            self._claims.append((read_document(Claim, found[0], key), found[1].last_modified))
        job = self._cluster.get_job(self._run_id)
        pods = self._cluster.pods(job["metadata"]["uid"]) if job else []
        self._pods = {pod["metadata"]["name"]: pod for pod in pods}
        self.status = read_status(job, pods, read_run(self._storage, self._run_id), self._cluster.now())
        if self.status.phase == Phase.UNKNOWN:
            raise no_such_run(self._run_id, self._storage.uri)
        self._looked = time.monotonic()

    def sources(self) -> list[str | int]:
        """Where there may be more lines, in order of time: pods by name, and the attempts whose pods are gone."""
        known = {*self._pods, *self._told}
        found: list[tuple[datetime, str | int]] = [
            (claimed, claim.attempt) for claim, claimed in self._claims if claim.pod not in known
        ]
        for name in self._pods.keys() - self._told:
            found.append((datetime.fromisoformat(self._pods[name]["metadata"]["creationTimestamp"]), name))
        return [source for _, source in sorted(found, key=lambda began: began[0])]

    def tell(self, source: str | int, to_the_end: bool) -> Iterator[Told]:
        """The lines of a pod, or those of an attempt that the store has and were not told yet."""
        if isinstance(source, int):
            yield from self._stored.setdefault(source, _StoredLog(self._storage, self._run_id, source)).more()
            return
        lines = Deduplicator(source, f"{self._storage.uri}/{RunKeys(self._run_id).attempts}")
        log = PodLog(self._cluster, source, lines, lambda: self._state_of(source), self._pace)
        yield from log.follow() if to_the_end else log.rest()
        self._told.add(source)
        if not lines.last:
            for claim, _ in self._claims:
                if claim.pod == source:
                    yield from self.tell(claim.attempt, to_the_end)

    def _state_of(self, name: str) -> PodState:
        self.look()
        pod = self._pods.get(name)
        if pod is None:
            return PodState.GONE
        if has_ended(pod):
            return PodState.ENDED
        killed_at = pod["metadata"].get("deletionTimestamp")
        is_ending = killed_at is not None and datetime.fromisoformat(killed_at) > self._cluster.now()
        return PodState.LEFT if self.status.terminal and not is_ending else PodState.GOES_ON


class _StoredLog:
    """The chunks of one attempt, as they come."""

    def __init__(self, storage: Storage, run_id: str, attempt: int) -> None:
        self._storage, self._keys = storage, RunKeys(run_id).attempt(attempt)
        self._source = f"attempt {attempt}"
        self._chunk = 1

    def more(self) -> Iterator[Told]:
        """The lines of the chunks that were put since the last call."""
        while True:
            key = self._keys.log(self._chunk)
            try:
                found = self._storage.get(key)
            except (DataError, NoInputError) as error:  # damaged, archived
                yield Gap(self._source, "", "", error.message, "")
            else:
                if found is None:
                    return
                yield from chunk_lines(found[0], self._source, f"{self._storage.uri}/{key}")
            self._chunk += 1
