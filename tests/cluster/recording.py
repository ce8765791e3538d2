"""A run's status as a real cluster tells it: diagnosed, and with FINETUNE_RECORD=1 kept for the tests without a cluster."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from job.contract.model import Document
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.diagnosis import Category, Diagnosis, diagnose
from launcher.kube import Json
from launcher.manifest import QUEUE
from launcher.runs import RunDocuments, read_run
from tests.conftest import ROOT

RECORDED = ROOT / "tests" / "launcher" / "recorded"
_SECONDS = 30
# What no diagnosis reads, or is of the machine that recorded.
_LEFT_OUT = {"annotations", "env", "managedFields", "podFailurePolicy", "securityContext", "tolerations"}
_LEFT_OUT |= {"volumeMounts", "volumes"}


def recorded(
    category: Category,
    cluster: Cluster,
    run_id: str,
    storage: Storage | None = None,
    variant: str = "",
    later: timedelta = timedelta(),
) -> Diagnosis:
    """The diagnosis once it is of this category, which it must become.

    Args:
        category: names the file as well.
        cluster: where the run's Job is.
        run_id: of the run, and the name of its Job.
        storage: the root of runs; None when the run has left nothing there.
        variant: tells this status from others of the category.
        later: how much later it is looked at than it was told.
    """
    deadline = time.monotonic() + _SECONDS
    while True:
        status, documents = gather(cluster, run_id, storage, later)
        now, queue_exists = datetime.fromisoformat(status["now"]), status["queue_exists"]
        found = diagnose(status["job"], status["pods"], status["events"], documents, now, queue_exists)
        if found and found.category == category:
            break
        assert time.monotonic() < deadline, (found, status)
        time.sleep(0.2)
    if os.environ.get("FINETUNE_RECORD") == "1":
        stem = "-".join(filter(None, (category.name.lower(), variant)))
        body = json.dumps(_pruned(status), indent=1, ensure_ascii=False)
        (RECORDED / f"{stem}.json").write_text(f"{body}\n")
    return found


def gather(cluster: Cluster, run_id: str, storage: Storage | None, later: timedelta) -> tuple[Json, RunDocuments]:
    """Everything that is to be seen of a run, as JSON, and its documents."""
    now = datetime.now(UTC) + later
    job = cluster.get_job(run_id)
    pods = cluster.pods(job["metadata"]["uid"]) if job else []
    events = _events(cluster, run_id)
    documents = read_run(storage, run_id, now) if storage else _none(run_id)
    queue = job and job["metadata"]["labels"].get(QUEUE)
    path = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{cluster.namespace}/localqueues/{queue}"
    status = {
        "now": now.isoformat(),
        "queue_exists": not queue or cluster.exists(path),
        "job": job,
        "pods": pods,
        "events": events,
        "documents": _json(documents),
    }
    return status, documents


def _events(cluster: Cluster, run_id: str) -> list[Json]:
    """Those of the Job and of its pods, also of pods that have gone: a pod's name begins with its Job's."""
    pages = cluster.api.pages(f"/api/v1/namespaces/{cluster.namespace}/events")
    found = (event for page in pages for event in page["items"] or ())
    return [event for event in found if f"{event['involvedObject']['name']}-".startswith(f"{run_id}-")]


def _json(documents: RunDocuments) -> Json:
    found: dict[str, Document | None] = {
        "claim": documents.claim,
        "lease": documents.lease,
        "outcome": documents.outcome,
    }
    told: Json = {name: document.model_dump(mode="json") for name, document in found.items() if document}
    age = documents.lease_age
    return told | ({"lease_age": age.total_seconds()} if age is not None else {})


def _pruned(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _pruned(part) for name, part in tree.items() if name not in _LEFT_OUT}
    return [_pruned(part) for part in tree] if isinstance(tree, list) else tree


def _none(run_id: str) -> RunDocuments:
    return RunDocuments(run_id, **dict.fromkeys(list(RunDocuments.__dataclass_fields__)[1:]))
