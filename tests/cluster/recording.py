"""A run's status as a real cluster tells it: diagnosed, and with FINETUNE_RECORD=1 kept for the tests without a cluster."""

import json
import os
import re
import time
from dataclasses import replace
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any

from job.contract.model import Document
from job.storage import Storage
from job.storage.opening import open_storage
from launcher.categories import Category
from launcher.cluster import Cluster
from launcher.diagnosis import Diagnosis, diagnose
from launcher.explaining import Findings, find
from launcher.kube import Json
from launcher.runs import RunDocuments
from tests.conftest import ROOT

RECORDED = ROOT / "tests" / "launcher" / "recorded"
_SECONDS = 90  # a kubelet looks at what pods have written every ten
# What no diagnosis reads, or is of the machine that recorded.
_LEFT_OUT = {"annotations", "env", "managedFields", "podFailurePolicy", "securityContext", "tolerations"}
_LEFT_OUT |= {"volumeMounts", "volumes"}


def recorded(
    name: str,
    cluster: Cluster,
    run_id: str,
    storage: Storage | None = None,
    words: str = "",
    later: timedelta = timedelta(),
) -> Diagnosis:
    """The diagnosis once it is the one of this name, which it must become.

    Args:
        name: of the file: the category's, and where it has several a hyphen and what tells this one from them.
        cluster: where the run's Job is.
        run_id: of the run, and the name of its Job.
        storage: the root of runs; None when the run has left nothing there.
        words: a pattern that the diagnosis' text must have as well.
        later: how much later it is looked at than it was told.
    """
    category = Category[name.partition("-")[0].upper()]
    deadline = time.monotonic() + _SECONDS
    while True:
        seen = look(cluster, run_id, storage, later)
        found = diagnose(seen.job, seen.pods, seen.events, seen.documents, seen.now, seen.queue_exists)
        if found and found.category == category and re.search(words, found.text):
            break
        assert time.monotonic() < deadline, (found, seen)
        time.sleep(0.2)
    if os.environ.get("FINETUNE_RECORD") == "1":
        body = json.dumps(_pruned(_json(seen)), indent=1, ensure_ascii=False)
        (RECORDED / f"{name}.json").write_text(f"{body}\n")
    return found


def look(cluster: Cluster, run_id: str, storage: Storage | None, later: timedelta) -> Findings:
    """Everything that is to be seen of a run, as if it were later."""
    with TemporaryDirectory() as empty:
        seen = find(run_id, storage or open_storage(empty), cluster)
    age = seen.documents.lease_age
    documents = replace(seen.documents, lease_age=None if age is None else age + later)
    return replace(seen, now=seen.now + later, documents=documents)


def _json(seen: Findings) -> Json:
    return {
        "now": seen.now.isoformat(),
        "queue_exists": seen.queue_exists,
        "job": seen.job,
        "pods": seen.pods,
        "events": seen.events,
        "documents": _documents(seen.documents),
    }


def _documents(documents: RunDocuments) -> Json:
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
