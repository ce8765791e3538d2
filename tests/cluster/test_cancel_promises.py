"""What a cancel promises: the run ends, it is written down who ended it, and nothing else is touched."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from job.contract.documents import Cancelled
from job.contract.errors import NoInputError, TakenError
from job.contract.keys import RunKeys
from job.contract.model import read_document
from job.storage import Storage
from launcher.cancelling import cancel
from launcher.cluster import Cluster
from launcher.launching import Prepared, launch
from launcher.manifest import Manifest
from launcher.status import Phase
from launcher.watching import look
from tests.cluster.conftest import SECONDS, post, until
from tests.cluster.faults import FaultyApi
from tests.cluster.test_launch_promises import (
    Site,
    at_rest,
    claim,
    delete,
    dying,
    hold,
    job_of,
    names,
    nth,
    queued,
    release,
    survives,
    swaps,
)
from tests.launcher.runs import publish, run_of


def cancelled(storage: Storage, run_id: str) -> Cancelled | None:
    key = RunKeys(run_id).cancelled
    found = storage.get(key)
    return read_document(Cancelled, found[0], key) if found else None


def is_cancelled(storage: Storage, cluster: Cluster, run_id: str) -> bool:
    status = look(run_id, storage, cluster)
    return (status.phase, status.terminal, cluster.get_job(run_id)) == (Phase.CANCELLED, True, None)


def test_promise_57_before_a_pod_is_there(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    none = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    post(cluster, f"/api/v1/namespaces/{cluster.namespace}/resourcequotas", none)
    job = launch(prepared, storage, cluster).job
    assert job
    until(lambda: [event for event in cluster.events(job["metadata"]["uid"]) if event["reason"] == "FailedCreate"])
    assert cluster.pods(job["metadata"]["uid"]) == []
    cancel(prepared.run_id, storage, cluster, "ada")
    assert is_cancelled(storage, cluster, prepared.run_id)


def test_promise_57_with_its_pod(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    job = launch(prepared, storage, cluster).job
    assert job
    until(lambda: cluster.pods(job["metadata"]["uid"]))
    cancel(prepared.run_id, storage, cluster, "ada")
    assert is_cancelled(storage, cluster, prepared.run_id)
    assert cluster.pods(job["metadata"]["uid"]) == [], "they end before their Job is gone"


def test_promise_57_in_a_queue(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(prepared), storage, cluster)
    assert look(prepared.run_id, storage, cluster).phase == Phase.QUEUED
    cancel(prepared.run_id, storage, cluster, "ada")
    assert is_cancelled(storage, cluster, prepared.run_id)


def test_promise_57_twice_is_once(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(prepared), storage, cluster)
    first = cancel(prepared.run_id, storage, cluster, "ada")
    assert cancel(prepared.run_id, storage, cluster, "bob") == first == cancelled(storage, prepared.run_id)


def test_promise_57_by_two_at_once(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    job = launch(queued(prepared), storage, cluster).job
    with ThreadPoolExecutor(8) as people:
        list(people.map(lambda _: cancel(prepared.run_id, storage, cluster, "ada"), range(8)))
    assert is_cancelled(storage, cluster, prepared.run_id)
    assert job
    assert cancelled(storage, prepared.run_id)


def cancel_there(run_id: str, site: Site, number: int = 0) -> None:
    cancel(run_id, dying(site, number), site.cluster, "ada")


@pytest.mark.parametrize("where", ["before the API server's answer", "after the store's answer"])
@pytest.mark.parametrize("freeze_in_pod", [False, True], ids=["frozen", "to be frozen in its pod"])
def test_promise_57_killed_at_any_request_and_finished_by_the_next(
    where: str,
    freeze_in_pod: bool,
    config_file: Path,
    template: Manifest,
    api: FaultyApi,
    storage: Storage,
    cluster: Cluster,
) -> None:
    site = Site(str(api.kubeconfig), cluster.namespace, storage.uri)
    number, over = 0, False
    while not over:
        number += 1
        run = queued(nth(number, config_file, template, storage, freeze_in_pod))
        launch(run, storage, cluster)
        over = survives(api, where, number, cancel_there, run.run_id, site)
        cancel(run.run_id, storage, cluster, "bob")
        assert is_cancelled(storage, cluster, run.run_id)
    assert number > 3
    assert names(cluster) == set()


def test_promise_57_a_later_launch_runs(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(prepared), storage, cluster)
    first = cancel(prepared.run_id, storage, cluster, "ada")
    assert launch(queued(prepared), storage, cluster).created
    assert cancelled(storage, prepared.run_id) == first, "it is there, and counts no more"
    assert look(prepared.run_id, storage, cluster).phase == Phase.QUEUED
    second = cancel(prepared.run_id, storage, cluster, "bob")
    assert (second.by, second.job_uid != first.job_uid) == ("bob", True)
    assert is_cancelled(storage, cluster, prepared.run_id)


def test_promise_57_killed_in_a_later_launch_and_finished_by_the_next(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(queued(prepared), storage, cluster)
    cancel(prepared.run_id, storage, cluster, "ada")
    later = launch(queued(prepared), storage, cluster).job
    assert later
    claim(storage, prepared, job_uid=later["metadata"]["uid"], pod="later")
    delete(cluster, prepared.run_id)  # as far as the killed one came
    finished = cancel(prepared.run_id, storage, cluster, "bob")
    assert (finished.by, finished.attempt) == ("bob", 1)


def test_promise_57_of_a_job_that_is_being_deleted(
    prepared: Prepared, storage: Storage, through: Cluster, cluster: Cluster
) -> None:
    uid = hold(prepared, storage, cluster)
    assert cluster.delete_job(prepared.run_id, uid)
    with ThreadPoolExecutor(1) as other:
        cancelling = other.submit(cancel, prepared.run_id, storage, through, "ada")
        until(lambda: cancelled(storage, prepared.run_id))
        status = look(prepared.run_id, storage, cluster)
        assert (status.phase, status.job_uid) == (Phase.CANCELLED, uid), "told before the Job has gone"
        release(cluster, prepared.run_id)
        assert cancelling.result(SECONDS).job_uid == uid
    assert is_cancelled(storage, cluster, prepared.run_id)


def test_promise_57_not_after_its_result(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(prepared), storage, cluster)
    publish(run_of(storage, "bot-0123456789"))
    with pytest.raises(TakenError, match="succeeded already"):
        cancel("bot-0123456789", storage, cluster, "ada")
    assert cancelled(storage, "bot-0123456789") is None


def test_nobody_s_run_cannot_be_cancelled(storage: Storage, cluster: Cluster) -> None:
    with pytest.raises(NoInputError, match="no run bot-9999999999"):
        cancel("bot-9999999999", storage, cluster, "ada")
    assert list(storage.list("")) == []


def test_promise_5_the_job_that_took_the_name_meanwhile_survives(
    prepared: Prepared, storage: Storage, api: FaultyApi, through: Cluster, cluster: Cluster
) -> None:
    first = launch(queued(prepared), storage, cluster).job
    api.on_request = swaps(prepared, cluster)
    assert first
    assert cancel(prepared.run_id, storage, through, "ada").job_uid == first["metadata"]["uid"]
    survivor = job_of(cluster, prepared.run_id)["metadata"]
    assert api.count("DELETE", "/jobs") == 1
    assert ("deletionTimestamp" in survivor, survivor["uid"] != first["metadata"]["uid"]) == (False, True)
    assert look(prepared.run_id, storage, cluster).phase == Phase.QUEUED, "that one was not cancelled"


@pytest.mark.parametrize("label", ["app.kubernetes.io/managed-by", "app.kubernetes.io/name"])
def test_promise_5_a_job_that_is_not_ours_is_left_alone(
    label: str, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    job = queued(prepared).job
    job["metadata"]["labels"][label] = "somebody"
    assert cluster.create_job(job)
    before = at_rest(cluster, prepared.run_id)
    with pytest.raises(TakenError, match="not made by the launcher"):
        cancel(prepared.run_id, storage, cluster, "ada")
    assert job_of(cluster, prepared.run_id)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert cancelled(storage, prepared.run_id) is None
