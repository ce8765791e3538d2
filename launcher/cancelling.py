"""Ends a run: its Job deleted, and that it was cancelled written down."""

from datetime import UTC, datetime

from job.contract.documents import Cancelled
from job.contract.errors import TakenError
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes, read_document
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.deciding import Seen, lives_elsewhere
from launcher.evidence import Evidence
from launcher.manifest import is_ours
from launcher.runs import newest_attempt, no_such_run, read_run


def cancel(run_id: str, storage: Storage, cluster: Cluster, by: str) -> Cancelled:
    """Deletes the run's Job, whose pods get SIGTERM, writes cancelled.json and returns when the Job is gone.

    Twice is the same as once, and a cancel that was cut off anywhere is finished by the next.

    Raises:
        NoInputError: there is no such run.
        TakenError: the run has its result, it lives elsewhere, or the Job of that name is not ours.
        UnavailableError: the Job is not gone after minutes: its node is away.
    """
    keys = RunKeys(run_id)
    if storage.head(keys.result):
        raise TakenError(f"{run_id} has succeeded already", "There is nothing to cancel.")
    job = cluster.get_job(run_id)
    if job is None and not any(map(storage.head, (keys.spec, keys.config))):  # the pod may yet have to freeze the spec
        raise no_such_run(run_id, storage.uri)
    if job is None:
        run = Evidence({}, None, read_run(storage, run_id))
        if lives_elsewhere(Seen(run, cluster.namespace)) and run.documents.claim and run.documents.claim.namespace:
            raise TakenError(f"{run_id} has no Job here: {run.holder} runs it", "Cancel it where it runs.")
    if job and not is_ours(job):
        raise TakenError(f"the Job {run_id} was not made by the launcher", "Delete it by kubectl if it is yours.")
    uid = job["metadata"]["uid"] if job else None
    attempt = newest_attempt(storage, run_id)  # before the Job goes: what is claimed later is a later launch's
    standing = _standing(run_id, storage)
    if uid:
        cluster.delete_job(run_id, uid)
    elif standing and standing.attempt >= attempt:  # else a cancel was cut off after it had deleted a later Job
        return standing
    cancelled = Cancelled(by=by, at=datetime.now(UTC), job_uid=uid, attempt=attempt)
    storage.put(keys.cancelled, canonical_bytes(cancelled))
    if uid:
        cluster.wait_until_gone(run_id, uid)
    return cancelled


def _standing(run_id: str, storage: Storage) -> Cancelled | None:
    key = RunKeys(run_id).cancelled
    found = storage.get(key)
    return read_document(Cancelled, found[0], f"{storage.uri}/{key}") if found else None
