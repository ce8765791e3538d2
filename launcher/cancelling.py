"""Ends a run: its Job deleted, and that it was cancelled written down."""

from datetime import UTC, datetime

from job.contract.documents import Cancelled
from job.contract.errors import NoInputError, TakenError
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes, read_document
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.manifest import SPEC_SHA256
from launcher.runs import newest_attempt


def cancel(run_id: str, storage: Storage, cluster: Cluster, by: str) -> Cancelled:
    """Deletes the run's Job, whose pods get SIGTERM, and then writes cancelled.json. Twice is the same as once.

    Raises:
        NoInputError: there is no such run.
        TakenError: the run has its result, or the Job of that name is not ours.
    """
    keys = RunKeys(run_id)
    if storage.head(keys.result):
        raise TakenError(f"{run_id} has succeeded already", "There is nothing to cancel.")
    job = cluster.get_job(run_id)
    if job is None and storage.head(keys.spec) is None:
        raise NoInputError(f"there is no run {run_id} under {storage.uri}, and no Job", "`list` names the runs.")
    uid = None
    if job:
        if SPEC_SHA256 not in job["metadata"].get("annotations", {}):
            raise TakenError(f"the Job {run_id} was not made by the launcher", "Delete it by kubectl if it is yours.")
        uid = job["metadata"]["uid"]
    attempt = newest_attempt(storage, run_id)  # before the Job goes: what is claimed later is a later launch's
    if uid:
        cluster.delete_job(run_id, uid)
    standing = storage.get(keys.cancelled)
    if not job and standing:
        told = read_document(Cancelled, standing[0], f"{storage.uri}/{keys.cancelled}")
        if told.attempt >= attempt:  # else a cancel was cut off after it had deleted a later Job
            return told
    cancelled = Cancelled(by=by, at=datetime.now(UTC), job_uid=uid, attempt=attempt)
    storage.put(keys.cancelled, canonical_bytes(cancelled))
    return cancelled
