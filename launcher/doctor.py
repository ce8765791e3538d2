"""Whether runs can be launched here: cluster, rights, GPU nodes, queue, store, and the grace period it asks for.

Nothing is changed but two probes in the store. The names of the checks are stable: others compare them.
"""

import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from job.contract.disk import CHECKPOINT_BYTES
from job.contract.errors import ConfigError, JobError, PermissionDenied
from job.contract.exits import Exit
from job.contract.keys import RunKeys
from job.contract.model import Document
from job.storage import Storage
from job.storage.canary import probe
from job.storage.opening import open_storage
from launcher.cluster import Cluster
from launcher.gpu_nodes import Note, gpu_nodes, quota
from launcher.manifest import Manifest, grace_seconds
from launcher.pending import TOO_LONG, pending_runs, priority_class, queue, service_account

UPLOAD_BYTES = 32 << 20
"""What is sent to measure the rate."""

_OLDEST = (1, 31)  # podFailurePolicy is stable since then, ValidatingAdmissionPolicy since the one before
_REVIEWS_AT_A_TIME = 8
_BUDGET_SECONDS = 10  # for a store that does not answer
_KEYS = RunKeys("doctor")  # under runs/, where whoever launches may write

_CHECKPOINT_BYTES = CHECKPOINT_BYTES * 42_000_000  # the parameters of an adapter at the default rank on 8B
# For training to end its step and write the checkpoint, which can then go up. An estimate: a step may be longer.
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
    Right("watch", "jobs", "batch", "watch, wait"),
    Right("delete", "jobs", "batch", "cancel, launch --resume"),
    Right("patch", "jobs", "batch", "launch, wait --start-timeout"),
    Right("list", "pods", "", "status, wait, logs, list"),
    Right("get", "pods/log", "", "logs"),
    Right("list", "events", "", "why, schedules"),
    Right("get", "cronjobs", "batch", "schedule, schedules, unschedule"),
    Right("list", "cronjobs", "batch", "schedule, schedules, unschedule"),
    Right("create", "cronjobs", "batch", "schedule, schedules, unschedule"),
    Right("patch", "cronjobs", "batch", "schedule, schedules, unschedule"),
    Right("delete", "cronjobs", "batch", "schedule, schedules, unschedule"),
)


class Check(Document):
    """One thing that was looked at."""

    schema_version: Literal[1] = 1
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


def examine(
    template: Manifest,
    storage: Callable[[], Storage],
    cluster: Callable[[], Cluster],
    pending: timedelta = TOO_LONG,
    upload_bytes: int = UPLOAD_BYTES,
) -> list[Check]:
    """All checks, in the same order each time. None hides another, unless nothing answers.

    Args:
        template: the site's Job template.
        storage: opens the root of runs; it gets a probe, and one file that the next examination overwrites.
        cluster: connects to where runs are launched.
        pending: a run that has been pending for longer is named.
        upload_bytes: what is sent to measure the rate.
    """
    return [
        *_area(
            "cluster",
            lambda: _version(cluster()),
            {
                "rights": lambda: _rights(cluster()),
                "namespace": _if_allowed(lambda: _namespace(cluster())),
                "service-account": _if_allowed(lambda: service_account(template, cluster())),
                "priority-class": _if_allowed(lambda: priority_class(template, cluster())),
                "gpu-nodes": _if_allowed(lambda: gpu_nodes(template, cluster().nodes())),
                "queue": _if_allowed(lambda: queue(template, cluster())),
                "quota": _if_allowed(lambda: quota(template, cluster().quotas())),
                "pending": _if_allowed(lambda: pending_runs(cluster(), pending)),
            },
        ),
        *_area(
            "store",
            lambda: _probe(storage()),
            {"upload-rate": lambda: _upload_rate(template, storage(), upload_bytes)},
        ),
    ]


def code_of(checks: Iterable[Check]) -> int:
    """The exit code, 0 if none failed.

    64 when no cluster or no root is named, else 77 when a right is missing, else 69 when something does not answer, else 78.
    """
    codes = {check.code for check in checks if check.ok is False}
    ranked = (Exit.USAGE, Exit.NO_PERMISSION, Exit.S3_UNAVAILABLE)
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
    except Note as note:
        return Check(name=name, ok=None, message=note.message, resolution=note.resolution)
    except JobError as error:
        return Check(name=name, ok=False, message=error.message, resolution=error.resolution, code=int(error.code))


def _if_allowed(look: _Look) -> _Look:
    """A look that nobody but doctor takes, so that the role of whoever launches may well lack it."""

    def allowed() -> str:
        try:
            return look()
        except PermissionDenied as error:
            raise Note(f"not looked at: {error.message}") from error

    return allowed


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
    return grace_for(size / seconds, grace_seconds(template))


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
        raise Note(
            f"{told}; the Job template gives {grace} s",
            f"If pods are no faster, set terminationGracePeriodSeconds to {needed}.",
        )
    return f"{told}, of the {grace} s that the Job template gives"
