"""What leaves a run pending: a name in the Job template that nothing has, and the runs that have not started for long."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from job.contract.errors import ConfigError
from launcher.cluster import JOB_UID, Cluster
from launcher.evidence import ended
from launcher.gpu_nodes import Note, few, pod_of
from launcher.kube import Json
from launcher.manifest import QUEUE, Manifest, is_ours

TOO_LONG = timedelta(minutes=30)
"""A run that has been pending for longer is named."""


# What the Job template names


def service_account(template: Manifest, cluster: Cluster) -> str:
    """That the pods' service account is there.

    Raises:
        ConfigError: it is not.
    """
    name = pod_of(template).get("serviceAccountName", "default")
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{name}"
    return _there(cluster, path, f"service account {name}")


def priority_class(template: Manifest, cluster: Cluster) -> str:
    """That the pods' PriorityClass is there.

    Raises:
        JobError: it is not; a mere note when the template names none.
    """
    name = pod_of(template).get("priorityClassName")
    if name is None:
        raise Note("the Job template names none")
    return _there(cluster, f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}", f"PriorityClass {name}")


def queue(template: Manifest, cluster: Cluster) -> str:
    """That Kueue is there, and in the namespace the LocalQueue.

    Raises:
        JobError: one is not; a mere note when the template names no queue.
    """
    name = template["metadata"].get("labels", {}).get(QUEUE)
    if name is None:
        raise Note("the Job template names none")
    path = queue_path(name, cluster)
    if path is None:
        raise ConfigError(
            f"the Job template names the queue {name}, and this cluster serves no Kueue",
            "Install Kueue, or take the label out of the Job template.",
        )
    return _there(cluster, path, f"LocalQueue {name}")


def queue_path(name: str, cluster: Cluster) -> str | None:
    """Where the API server has a LocalQueue, in the version that it prefers; None when it serves no Kueue."""
    kueue = cluster.api.send("GET", f"/apis/{QUEUE.partition('/')[0]}")
    if kueue.status == 404:
        return None
    group = kueue.json()["preferredVersion"]["groupVersion"]
    return f"/apis/{group}/namespaces/{cluster.namespace}/localqueues/{name}"


def _there(cluster: Cluster, path: str, what: str) -> str:
    if not cluster.exists(path):
        raise ConfigError(
            f"the {what} of the Job template is not there, so no run could start",
            "Create it, or name another in the Job template.",
        )
    return f"the {what} is there"


# Runs that do not start


def pending_runs(cluster: Cluster, limit: timedelta) -> str:
    """That no run has been pending for longer than this.

    Raises:
        ConfigError: some have; names them.
    """
    names = pending_too_long(cluster, limit)
    minutes = f"{limit.total_seconds() / 60:g} minutes"
    if names:
        raise ConfigError(f"pending for more than {minutes}: {few(names)}", "`finetune why` says what a run waits for.")
    return f"no run has been pending for more than {minutes}"


def pending_too_long(cluster: Cluster, limit: timedelta) -> list[str]:
    """The launcher's runs, by name, whose pod has not started within so long a time. Suspended ones do not count."""
    unfinished, _ = cluster.jobs("status.successful=0")
    made = pods_made(cluster)
    return sorted(wait_too_long(filter(is_ours, unfinished), made, cluster.now(), limit))


def wait_too_long(jobs: Iterable[Json], made: Mapping[str, datetime], now: datetime, limit: timedelta) -> set[str]:
    """The names of those of some Jobs that have waited for longer than this. Pure.

    Args:
        jobs: any.
        made: what `pods_made` gives.
        now: the API server's time.
        limit: suspended Jobs, and those between two attempts, do not wait.
    """
    return {
        job["metadata"]["name"]
        for job in filter(waits, jobs)
        if (since := waits_since(job, made.get(job["metadata"]["uid"]))) and now - since > limit
    }


def pods_made(cluster: Cluster) -> dict[str, datetime]:
    """When the pods were made that have not started, by the uid of their Job."""
    pods = [pod for pod in cluster.pending_pods() if not pod.get("deletionTimestamp")]
    return {pod["labels"].get(JOB_UID, ""): datetime.fromisoformat(pod["creationTimestamp"]) for pod in pods}


def waits(job: Json) -> bool:
    """Whether a Job that is to run has no pod that runs."""
    stopped = job["spec"].get("suspend") or job["metadata"].get("deletionTimestamp") or ended(job)
    return not stopped and not job.get("status", {}).get("ready")


def waits_since(job: Json, pod_made: datetime | None) -> datetime | None:
    """Since when it waits for its pod to be made, or to start; None between two attempts, or once it runs.

    Args:
        job: one that waits.
        pod_made: when the pod was made that has not started; None when there is none.
    """
    status = job.get("status", {})
    if pod_made or status.get("failed") or status.get("active"):
        return pod_made
    return datetime.fromisoformat(status.get("startTime") or job["metadata"]["creationTimestamp"])
