"""Why a run does not go on: gathers what is to be seen of it, and asks for the diagnosis."""

from dataclasses import dataclass
from datetime import datetime

from job.contract.errors import PermissionDenied, UnavailableError
from job.storage import Storage
from launcher.categories import Category
from launcher.cluster import Cluster
from launcher.diagnosis import Diagnosis, diagnose
from launcher.kube import Json
from launcher.manifest import QUEUE
from launcher.pending import queue_path
from launcher.runs import RunDocuments, no_such_run, read_run
from launcher.scheduling import ScheduleLine, read_schedule
from launcher.status import ended_by_store


@dataclass(frozen=True)
class Findings:
    """Everything that is to be seen of a run, or of a schedule."""

    job: Json | None
    pods: list[Json]
    events: list[Json]
    """Of the Job, its pods, its Kueue Workload, and the CronJob of that name."""
    documents: RunDocuments
    now: datetime
    """The API server's time."""
    queue_exists: bool


def find(run_id: str, storage: Storage, cluster: Cluster) -> Findings:
    """Asks the API server and the store: the Job, its pods, the events, and then the documents."""
    job = cluster.get_job(run_id)
    pods = cluster.pods(job["metadata"]["uid"]) if job else []
    events = cluster.events_of(run_id, job["metadata"]["creationTimestamp"] if job else "")
    queue = job and job["metadata"].get("labels", {}).get(QUEUE)
    queue_exists = not queue or _has_queue(queue, cluster)
    return Findings(job, pods, events, read_run(storage, run_id), cluster.now(), queue_exists)


def _has_queue(name: str, cluster: Cluster) -> bool:
    """Whether Kueue has the queue; taken for granted where one may not look."""
    try:
        path = queue_path(name, cluster)
        return path is not None and cluster.exists(path)
    except PermissionDenied:
        return True


def why(run_id: str, storage: Storage, cluster: Cluster) -> Diagnosis | None:
    """What keeps a run from going on; None when nothing does. Of one that has ended the store tells it, too.

    Args:
        run_id: a run, or the name of a schedule.
        storage: the root of runs.
        cluster: where its Job is, or was.

    Raises:
        NoInputError: there is neither.
        UnavailableError: the API server or the store cannot be reached.
    """
    try:
        seen = find(run_id, storage, cluster)
    except UnavailableError:
        if ended_by_store(read_run(storage, run_id)):
            return None
        raise
    found = diagnose(seen.job, seen.pods, seen.events, seen.documents, seen.now, seen.queue_exists)
    if found or seen.job or seen.documents.exists:
        return found
    if cronjob := cluster.get_cronjob(run_id):
        return _stuck(read_schedule(cronjob, cluster.events(cronjob["metadata"]["uid"]), seen.now))
    raise no_such_run(run_id, storage.uri)


def _stuck(line: ScheduleLine) -> Diagnosis | None:
    """What holds a schedule's nights, where the events that told of it are gone."""
    if line.stuck is None:
        return None
    return Diagnosis(
        category=Category.NIGHT_SKIPPED,
        summary=Category.NIGHT_SKIPPED.summary,
        said=line.stuck,
        by="launcher",
        resolution="`finetune schedules` shows its last nights.",
    )
