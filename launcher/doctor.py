"""Whether runs can be launched here: cluster, rights, GPU nodes, queue, store, and the grace period it asks for.

Nothing is changed but two probes in the store. The names of the checks are stable: others compare them.
"""

import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from job.contract.errors import ConfigError, JobError, PermissionDenied
from job.contract.exits import Exit
from job.contract.keys import RunKeys
from job.contract.model import Document
from job.storage import Storage
from job.storage.canary import probe
from job.storage.opening import open_storage
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.launching import ended
from launcher.manifest import QUEUE, SELECTOR, Manifest, trainer

PENDING = timedelta(minutes=30)
"""A run that has been pending for longer is named."""
UPLOAD_BYTES = 32 << 20
"""What is sent to measure the rate."""

_OLDEST = (1, 31)  # podFailurePolicy is stable since then, ValidatingAdmissionPolicy since the one before
_REVIEWS_AT_A_TIME = 8
_NAMED_AT_MOST = 8
_BUDGET_SECONDS = 10  # for a store that does not answer
_KEYS = RunKeys("doctor")  # under runs/, where whoever launches may write

# An adapter and AdamW's two moments, 4 bytes each: 41.9M parameters at the default rank on 8B, by job/preflight.py.
_CHECKPOINT_BYTES = 12 * 42_000_000
# What job/children.py gives a child to end, before what it saved can go up.
_ENDING_SECONDS = 35


class Right(NamedTuple):
    """A right in the namespace, and the commands that need it."""

    verb: str
    resource: str
    group: str
    commands: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


NEEDED = (
    Right("create", "jobs", "batch", "launch"),
    Right("get", "jobs", "batch", "launch, status, wait, cancel"),
    Right("list", "jobs", "batch", "list"),
    Right("watch", "jobs", "batch", "wait"),
    Right("delete", "jobs", "batch", "cancel, launch --resume"),
    Right("patch", "jobs", "batch", "ending a run that cannot start"),
    Right("list", "pods", "", "status, wait, logs"),
    Right("get", "pods/log", "", "logs"),
    Right("list", "events", "", "status"),
    Right("get", "cronjobs", "batch", "nights"),
    Right("list", "cronjobs", "batch", "nights"),
    Right("create", "cronjobs", "batch", "nights"),
    Right("patch", "cronjobs", "batch", "nights"),
    Right("delete", "cronjobs", "batch", "nights"),
)


class Check(Document):
    """One thing that was looked at."""

    name: str
    """One word. Stable."""
    ok: bool | None
    """Null: it could not be judged from here, or there is nothing to judge."""
    message: str
    """One sentence for people."""
    resolution: str = ""
    """What to do; empty when there is nothing to advise."""
    code: int = Exit.OK
    """The exit code of a failed one, else 0."""


class _Note(JobError):
    """What is to be told, and yet is no failure."""


def examine(
    template: Manifest,
    storage: Storage,
    cluster: Cluster,
    pending: timedelta = PENDING,
    upload_bytes: int = UPLOAD_BYTES,
) -> list[Check]:
    """All checks, in the same order each time. None hides another, unless nothing answers.

    Args:
        template: the site's Job template.
        storage: the root of runs; gets a probe, and one file that the next examination overwrites.
        cluster: where runs are launched.
        pending: a run that has been pending for longer is named.
        upload_bytes: what is sent to measure the rate.
    """
    return [
        *_area(
            "cluster",
            lambda: _version(cluster),
            {
                "rights": lambda: _rights(cluster),
                "namespace": _if_allowed(lambda: _namespace(cluster)),
                "service-account": _if_allowed(lambda: _service_account(template, cluster)),
                "priority-class": _if_allowed(lambda: _priority_class(template, cluster)),
                "gpu-nodes": _if_allowed(lambda: gpu_nodes(template, cluster.nodes())),
                "queue": _if_allowed(lambda: _queue(template, cluster)),
                "quota": _if_allowed(lambda: quota(template, cluster.quotas())),
                "pending": _if_allowed(lambda: _pending(cluster, pending)),
            },
        ),
        *_area(
            "store",
            lambda: _probe(storage),
            {"upload-rate": lambda: _upload_rate(template, storage, upload_bytes)},
        ),
    ]


def code_of(checks: Iterable[Check]) -> int:
    """The exit code: 77 when a right is missing, else 69 when something does not answer, else 78; 0 if none failed."""
    codes = {check.code for check in checks if check.ok is False}
    ranked = (Exit.NO_PERMISSION, Exit.S3_UNAVAILABLE)
    return next((code for code in ranked if code in codes), Exit.CONFIG if codes else Exit.OK)


# Gives what it saw in a sentence, or raises what is wrong.
_Look = Callable[[], str]


def _area(name: str, first: _Look, others: Mapping[str, _Look]) -> list[Check]:
    """A first check, and those that only make sense when what it looked at answers."""
    head = _check(name, first)
    if head.code in (Exit.OK, Exit.CONFIG):
        return [head, *(_check(other, look) for other, look in others.items())]
    return [head, *(Check(name=other, ok=None, message=f"not looked at: see {name}") for other in others)]


def _check(name: str, look: _Look) -> Check:
    try:
        return Check(name=name, ok=True, message=look())
    except _Note as note:
        return Check(name=name, ok=None, message=note.message, resolution=note.resolution)
    except JobError as error:
        return Check(name=name, ok=False, message=error.message, resolution=error.resolution, code=int(error.code))


def _if_allowed(look: _Look) -> _Look:
    """A look that nobody but doctor takes, so that the role of whoever launches may well lack it."""

    def allowed() -> str:
        try:
            return look()
        except PermissionDenied as error:
            raise _Note(f"not looked at: {error.message}") from error

    return allowed


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


# The cluster


def _version(cluster: Cluster) -> str:
    version = cluster.version()
    found = re.match(r"v(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < _OLDEST:
        raise ConfigError(f"the API server is {version}, and {_OLDEST[0]}.{_OLDEST[1]} is needed", "Upgrade it.")
    return f"the API server is {version}, the namespace {cluster.namespace}"


def _rights(cluster: Cluster) -> str:
    def may(right: Right) -> bool:
        resource, _, subresource = right.resource.partition("/")
        return cluster.may(right.verb, resource, right.group, subresource)

    with ThreadPoolExecutor(_REVIEWS_AT_A_TIME, "reviews") as workers:
        allowed = list(workers.map(may, NEEDED))
    missing = [f"{right} ({right.commands})" for right, has in zip(NEEDED, allowed, strict=True) if not has]
    if missing:
        raise PermissionDenied(
            f"rights are missing in {cluster.namespace}: {'; '.join(missing)}", "Ask for the role finetune-launcher."
        )
    return f"all {len(NEEDED)} rights that the commands need"


def _namespace(cluster: Cluster) -> str:
    answer = cluster.api.send("GET", f"/api/v1/namespaces/{cluster.namespace}")
    if answer.status == 404:
        raise ConfigError(f"there is no namespace {cluster.namespace}", "Create it, or give another by -n.")
    level = answer.json()["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
    return f"{cluster.namespace} {f'enforces pod security {level}' if level else 'enforces no pod security'}"


def _service_account(template: Manifest, cluster: Cluster) -> str:
    name = _pod(template).get("serviceAccountName", "default")
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/{name}"
    return _there(cluster, path, f"service account {name}")


def _priority_class(template: Manifest, cluster: Cluster) -> str:
    name = _pod(template).get("priorityClassName")
    if name is None:
        raise _Note("the Job template names none")
    return _there(cluster, f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}", f"PriorityClass {name}")


def _queue(template: Manifest, cluster: Cluster) -> str:
    name = template["metadata"].get("labels", {}).get(QUEUE)
    if name is None:
        raise _Note("the Job template names none")
    kueue = cluster.api.send("GET", f"/apis/{QUEUE.partition('/')[0]}")
    if kueue.status == 404:
        raise ConfigError(
            f"the Job template names the queue {name}, and this cluster serves no Kueue",
            "Install Kueue, or take the label out of the Job template.",
        )
    group = kueue.json()["preferredVersion"]["groupVersion"]
    path = f"/apis/{group}/namespaces/{cluster.namespace}/localqueues/{name}"
    return _there(cluster, path, f"LocalQueue {name}")


def _there(cluster: Cluster, path: str, what: str) -> str:
    if not cluster.exists(path):
        raise ConfigError(
            f"the {what} of the Job template is not there, so no run could start",
            "Create it, or name another in the Job template.",
        )
    return f"the {what} is there"


# GPUs


def gpu_nodes(template: Manifest, nodes: Sequence[Json]) -> str:
    """What of the cluster's GPUs a pod of the template can have. Affinity, and what runs there now, are left out.

    Raises:
        JobError: it can have none; a mere note when no node has GPUs at all.
    """
    resource, wanted = _gpus(template)
    having = [node for node in nodes if resource in node.get("status", {}).get("allocatable", {})]
    if not having:
        raise _Note(f"no node has {resource} now", "Install its device plugin, unless an autoscaler adds such nodes.")
    against = {node["metadata"]["name"]: obstacles(node, template) for node in having}
    closed = [f"{name} ({', '.join(why)})" for name, why in against.items() if why]
    counts = [int(node["status"]["allocatable"][resource]) for node in having if not against[node["metadata"]["name"]]]
    left_out = f"; left out: {_few(closed)}" if closed else ""
    if not counts or max(counts) < wanted:
        raise ConfigError(
            f"no node can take a pod with {wanted} {resource}: at most {max(counts, default=0)} on one{left_out}",
            "Ask for fewer, or let the Job template tolerate and select such nodes.",
        )
    return f"{sum(counts)} {resource} on {len(counts)} nodes, at most {max(counts)} on one{left_out}"


def obstacles(node: Json, template: Manifest) -> list[str]:
    """Why a node takes no pod of the template, whatever its size: cordon, taints, labels."""
    pod, spec, labels = _pod(template), node.get("spec", {}), node["metadata"].get("labels", {})
    tolerations = pod.get("tolerations", ())
    repelling = [
        taint
        for taint in spec.get("taints", ())
        if taint["effect"] != "PreferNoSchedule" and not any(tolerates(each, taint) for each in tolerations)
    ]
    return [
        *(["cordoned"] if spec.get("unschedulable") else []),
        *(f"taint {taint['key']}={taint.get('value', '')}:{taint['effect']}" for taint in repelling),
        *(f"not {key}={value}" for key, value in pod.get("nodeSelector", {}).items() if labels.get(key) != value),
    ]


def tolerates(toleration: Mapping[str, str], taint: Mapping[str, str]) -> bool:
    """Whether a toleration matches a taint, as the scheduler does it."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    operator = toleration.get("operator") or "Equal"
    return operator == "Exists" or (operator == "Equal" and toleration.get("value", "") == taint.get("value", ""))


def quota(template: Manifest, quotas: Iterable[Json]) -> str:
    """How many GPUs the namespace's quotas allow, and how many are used.

    Raises:
        ConfigError: one allows fewer than a pod of the template asks for.
    """
    resource, wanted = _gpus(template)
    key = f"requests.{resource}"
    told = []
    for name, hard, used in (
        (each["metadata"]["name"], each["spec"].get("hard", {}), each.get("status", {}).get("used", {}))
        for each in quotas
    ):
        if int(hard.get(key, wanted)) < wanted:
            raise ConfigError(
                f"the quota {name} allows {hard[key]} {resource}, and the Job template asks for {wanted}",
                "Ask whoever runs the cluster for more.",
            )
        if key in hard:
            told.append(f"{used.get(key, 0)} of {hard[key]} {resource} are used of the quota {name}")
    return "; ".join(told) or f"no quota limits {resource}"


def _gpus(template: Manifest) -> tuple[str, int]:
    """The template's GPU resource, and how many of it."""
    limits = trainer(template).get("resources", {}).get("limits", {})
    for name, count in limits.items():
        if "/" in name:
            return name, int(count)
    raise _Note("the Job template asks for no GPU")


def _pod(template: Manifest) -> Json:
    pod: Json = template["spec"]["template"]["spec"]
    return pod


# Runs that do not start


def pending_too_long(cluster: Cluster, limit: timedelta, now: datetime) -> list[str]:
    """The launcher's runs, by name, whose pod has not started within so long a time. Suspended ones do not count."""
    labels = dict(pair.split("=") for pair in SELECTOR.split(",")).items()
    unfinished, _ = cluster.jobs("status.successful=0")
    ours = [job for job in unfinished if labels <= job["metadata"].get("labels", {}).items() and waits(job)]
    return sorted(
        job["metadata"]["name"]
        for job in ours
        if (since := waits_since(job, cluster.pods(job["metadata"]["uid"]))) and now - since > limit
    )


def waits(job: Json) -> bool:
    """Whether a Job that is to run has no pod that runs."""
    stopped = job["spec"].get("suspend") or job["metadata"].get("deletionTimestamp") or ended(job)
    return not stopped and not job.get("status", {}).get("ready")


def waits_since(job: Json, pods: Sequence[Json]) -> datetime | None:
    """Since when it waits for its pod to be made, or to start; None between two attempts."""
    made = [pod["metadata"]["creationTimestamp"] for pod in pods if pod.get("status", {}).get("phase") == "Pending"]
    if pods and not made:
        return None
    started = job.get("status", {}).get("startTime") or job["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(max(made, default=started))


def _pending(cluster: Cluster, limit: timedelta) -> str:
    names = pending_too_long(cluster, limit, datetime.now(UTC))
    minutes = f"{limit.total_seconds() / 60:g} minutes"
    if names:
        raise ConfigError(
            f"pending for more than {minutes}: {_few(names)}", "`finetune status` says what a run waits for."
        )
    return f"no run has been pending for more than {minutes}"


# The store


def _probe(storage: Storage) -> str:
    probe(storage, _KEYS.canary(uuid.uuid4().hex))
    return f"{storage.uri} can be written and listed, and honours conditional writes"


def _upload_rate(template: Manifest, storage: Storage, size: int) -> str:
    hurried = open_storage(storage.uri, _BUDGET_SECONDS)
    with tempfile.TemporaryDirectory(prefix="finetune-doctor-") as directory:
        path = Path(directory, "upload")
        path.write_bytes(os.urandom(size))
        began = time.monotonic()
        hurried.upload(path, _KEYS.canary("upload"))
        seconds = time.monotonic() - began
    return grace_for(size / seconds, _pod(template).get("terminationGracePeriodSeconds", 30))


def grace_for(rate: float, grace: int) -> str:
    """The grace period that a pod needs to save its work when it is told to stop.

    Args:
        rate: of uploads, in bytes per second.
        grace: the template's terminationGracePeriodSeconds.

    Raises:
        JobError: a note that the template's is too short; no more, for a pod may be faster.
    """
    seconds = _CHECKPOINT_BYTES / rate
    needed = math.ceil(_ENDING_SECONDS + seconds)
    told = (
        f"{rate / 1e6:.1f} MB/s; the rate is from here, not from a pod. At that, a checkpoint of "
        f"{_CHECKPOINT_BYTES / 1e6:.0f} MB (8B at the default rank) takes {seconds:.0f} s, "
        f"and with {_ENDING_SECONDS} s for training to end a grace period of {needed} s"
    )
    if needed > grace:
        raise _Note(
            f"{told}; the Job template gives {grace} s",
            f"If pods are no faster, set terminationGracePeriodSeconds to {needed}.",
        )
    return f"{told}, of the {grace} s that the Job template gives"
