"""The runs of a root and a namespace, the newest first: those that have a Job, and those that have succeeded."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from job.contract.keys import index_prefix, indexed
from job.contract.model import Document
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.manifest import MODEL, SELECTOR
from launcher.pending import TOO_LONG, pods_made, wait_too_long
from launcher.runs import read_run
from launcher.status import RunStatus, read_status

_ROWS_AT_A_TIME = 16


class RunLine(Document):
    """A run as `list` shows it."""

    schema_version: Literal[1] = 1
    name: str
    """The model line."""
    since: datetime
    """When its Job was made, else when its spec was frozen, in whole seconds."""
    status: RunStatus
    """Of a run that has a Job without what only its pods tell."""


@dataclass(frozen=True, order=True)
class _Entry:
    since: datetime
    run_id: str
    name: str
    job_uid: str = ""
    """Empty when it has no Job."""


def list_runs(
    storage: Storage,
    cluster: Cluster | None,
    name: str | None,
    limit: int,
    selector: str | None = None,
    on_overdue: Callable[[str], object] = lambda _: None,
) -> list[RunLine]:
    """The newest runs of a model line, or with None of all lines, newest first.

    Jobs are listed by their metadata and the store by its index; what else a row tells is read for the rows shown.

    Args:
        storage: the root of runs.
        cluster: whose Jobs are listed; None for the store alone.
        name: the model line.
        limit: at most so many.
        selector: more labels that a Job must have, as kubectl's -l; runs without a Job are then left out.
        on_overdue: told the id of each run, shown or not, whose pod has not started for long; of one whose pod cannot
            even be made as far as it is shown: only its whole Job tells.

    Raises:
        DataError: a document is none that this version reads; names its key.
    """
    entries = {} if selector else {entry.run_id: entry for entry in _succeeded(storage, name)}
    if cluster:
        entries |= {entry.run_id: entry for entry in _with_job(cluster, name, selector)}
    newest = heapq.nlargest(limit, entries.values())

    def row(entry: _Entry) -> tuple[RunLine, Json | None]:
        job = cluster.get_job(entry.run_id) if cluster and entry.job_uid else None
        status = read_status(job, None, read_run(storage, entry.run_id))
        return RunLine(name=entry.name, since=entry.since, status=status), job

    with ThreadPoolExecutor(_ROWS_AT_A_TIME, "rows") as workers:
        rows = list(workers.map(row, newest))
    if cluster:
        for run_id in _overdue(cluster, entries.values(), [job for _, job in rows if job]):
            on_overdue(run_id)
    return [line for line, _ in rows]


def _overdue(cluster: Cluster, entries: Iterable[_Entry], shown: Iterable[Json]) -> list[str]:
    """The runs that have been pending for too long: by their pods, and of those shown also by their Jobs."""
    made = pods_made(cluster)
    now = cluster.now()
    by_pod = {entry.run_id for entry in entries if (began := made.get(entry.job_uid)) and now - began > TOO_LONG}
    return sorted(by_pod | wait_too_long(shown, made, now, TOO_LONG))


def _succeeded(storage: Storage, name: str | None) -> Iterator[_Entry]:
    for stat in storage.list(index_prefix(name)):
        if found := indexed(stat.key):
            line, frozen_at, run_id = found
            yield _Entry(frozen_at, run_id, line)


def _with_job(cluster: Cluster, name: str | None, selector: str | None) -> Iterator[_Entry]:
    labels = [SELECTOR, *([f"{MODEL}={name}"] if name else []), *([selector] if selector else [])]
    for metadata in cluster.job_metadata(",".join(labels)):
        line = metadata["labels"].get(MODEL, "")
        made = datetime.fromisoformat(metadata["creationTimestamp"])
        yield _Entry(made, metadata["name"], line, metadata["uid"])
