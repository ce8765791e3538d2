"""What a launch promises, kept by launchers that are processes, and that die at every step they take."""

import copy
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGKILL
from typing import Any, cast

import pytest

from examples.cluster.control_plane import ControlPlane
from job.contract.documents import Claim, Lease
from job.contract.errors import ConfigError, TakenError, UnavailableError
from job.contract.keys import RunKeys, config_key
from job.contract.model import canonical_bytes
from job.storage import Storage
from job.storage.opening import open_storage
from launcher.cancelling import cancel
from launcher.cluster import Cluster
from launcher.deciding import RunFailed
from launcher.kube import Json
from launcher.launching import Prepared, launch, prepare
from launcher.manifest import SELECTOR, SPEC_SHA256, Manifest
from tests.cluster.conftest import SECONDS, fresh_namespace, until
from tests.cluster.faults import Answer, Fault, FaultyApi, Send, loses_the_answer, only, says
from tests.cluster.test_launching import fail
from tests.storage.faulty_s3 import BrokenConnection, Request

HELD = "finetune.local/test"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "launcher.cli", "launcher.watching", "launcher.cancelling"])


@dataclass(frozen=True)
class Site:
    """Where another process launches: what it needs to open both."""

    kubeconfig: str
    namespace: str
    root: str

    @property
    def cluster(self) -> Cluster:
        return Cluster.connect(self.kubeconfig, namespace=self.namespace)

    @property
    def storage(self) -> Storage:
        return open_storage(self.root)


@pytest.fixture
def site(api: FaultyApi, cluster: Cluster, storage: Storage) -> Site:
    return Site(str(api.kubeconfig), cluster.namespace, storage.uri)


def nth(number: int, config_file: Path, template: Manifest, storage: Storage, freeze_in_pod: bool = False) -> Prepared:
    """A run for each number: it trains for so many steps."""
    config = json.loads(config_file.read_text()) | {"training": {"max_steps": number}}
    body = json.dumps(config).encode()
    return prepare(body, "config.yaml", template, storage, "ada", freeze_in_pod=freeze_in_pod)


def names(cluster: Cluster) -> set[str]:
    return {metadata["name"] for metadata in cluster.job_metadata(SELECTOR)}


def job_of(cluster: Cluster, run_id: str) -> Json:
    job = cluster.get_job(run_id)
    assert job
    return job


def queued(prepared: Prepared) -> Prepared:
    """The same, whose Job makes no pod before it is told to."""
    job = copy.deepcopy(prepared.job)
    job["spec"]["suspend"] = True
    return replace(prepared, job=job)


def at_rest(cluster: Cluster, run_id: str) -> Json:
    """A queued Job that its controller has seen: from then on nothing changes it but us."""
    until(lambda: job_of(cluster, run_id)["status"].get("conditions"))
    return job_of(cluster, run_id)


def delete(cluster: Cluster, run_id: str) -> None:
    """As somebody does by kubectl, or Kubernetes when a Job's time to live is over."""
    uid = job_of(cluster, run_id)["metadata"]["uid"]
    assert cluster.delete_job(run_id, uid)
    cluster.wait_until_gone(run_id, uid)


def claim(storage: Storage, run: Prepared, **who: str) -> None:
    """What a pod writes when it takes the run, wherever it is."""
    keys = RunKeys(run.run_id)
    taken = Claim.model_validate({"attempt": 1, "spec_sha256": run.spec_sha256, "owner": "somebody", **who})
    storage.put(keys.attempt(1).claim, canonical_bytes(taken))
    storage.put(keys.lease, canonical_bytes(Lease(attempt=1, heartbeat_at=datetime.now(UTC), stage="train")))


def fall_silent(storage: Storage, run: Prepared) -> None:
    """As if its pod had died ten minutes ago."""
    keys, then = RunKeys(run.run_id), time.time() - 600
    for key in (keys.lease, keys.attempt(1).claim):
        os.utime(Path(storage.uri, key), (then, then))


# Processes that die


class Dies:
    """A store whose user is killed as soon as its n-th request has been carried out."""

    def __init__(self, storage: Storage, number: int) -> None:
        self._storage, self._number, self._asked = storage, number, count(1)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found):
            return found

        def ask(*given: Any) -> Any:
            answer = found(*given)
            if next(self._asked) == self._number:
                os.kill(os.getpid(), SIGKILL)
            return answer

        return ask


def dying(site: Site, number: int) -> Storage:
    return cast(Storage, Dies(site.storage, number)) if number else site.storage


def launch_there(prepared: Prepared, site: Site, number: int = 0, resume: bool = False) -> None:
    launch(prepared, dying(site, number), site.cluster, resume)


def kills(victim: "Future[int]", number: int, after: bool) -> Fault:
    """A process is killed at its n-th request, before the API server hears of it or before its answer comes back."""
    asked = count(1)

    def fault(request: Request, send: Send) -> Answer:
        if next(asked) != number:
            return send(request)
        if after:
            b"".join(send(request).chunks)
        os.kill(victim.result(SECONDS), SIGKILL)
        raise BrokenConnection

    return fault


def process(target: Callable[..., object], *given: object) -> BaseProcess:
    started = PROCESSES.Process(target=target, args=given)
    started.start()
    return started


def survives(api: FaultyApi, where: str, number: int, target: Callable[..., object], *given: object) -> bool:
    """Whether a process got by without an n-th request. Else it was killed there."""
    victim: Future[int] = Future()
    in_store = where == "after the store's answer"
    api.faults = [] if in_store else [kills(victim, number, where == "before the API server's answer")]
    started = process(target, *given, number if in_store else 0)
    assert started.pid
    victim.set_result(started.pid)
    started.join(SECONDS)
    api.faults = []
    assert started.exitcode in (0, -SIGKILL)
    return started.exitcode == 0


EVERYWHERE = ["before the API server hears of it", "before the API server's answer", "after the store's answer"]


def is_whole(run: Prepared, storage: Storage, cluster: Cluster) -> bool:
    """Whether a run has its documents, to the byte, and its Job."""
    kept = [storage.get(key) for key in (RunKeys(run.run_id).spec, config_key(run.config_bytes))]
    annotated: str = job_of(cluster, run.run_id)["metadata"]["annotations"][SPEC_SHA256]
    documents = [canonical_bytes(run.spec), run.config_bytes]
    return [found and found[0] for found in kept] == documents and annotated == run.spec_sha256


def launch_and_tell(prepared: Prepared, site: Site, start: Any, told: Any) -> None:
    cluster, storage = site.cluster, site.storage
    start.wait(SECONDS)
    launched = launch(prepared, storage, cluster)
    assert launched.job
    told.put((launched.created, launched.job["metadata"]["uid"]))


def test_promise_1_fifty_processes_that_launch_the_same_make_one_job(
    prepared: Prepared, storage: Storage, cluster: Cluster, plane: ControlPlane
) -> None:
    site = Site(str(plane.kubeconfig()), cluster.namespace, storage.uri)
    start, told = PROCESSES.Barrier(50), PROCESSES.SimpleQueue()
    launchers = [process(launch_and_tell, prepared, site, start, told) for _ in range(50)]
    for launcher in launchers:
        launcher.join(SECONDS)
    assert [launcher.exitcode for launcher in launchers] == [0] * 50
    created, uids = zip(*(told.get() for _ in range(50)), strict=True)
    assert sum(created) == 1
    assert set(uids) == {job_of(cluster, prepared.run_id)["metadata"]["uid"]}
    assert names(cluster) == {prepared.run_id}
    assert is_whole(prepared, storage, cluster)


@pytest.mark.parametrize("where", EVERYWHERE)
def test_promise_2_a_launcher_killed_at_any_request_is_made_good_by_the_next(
    where: str,
    config_file: Path,
    template: Manifest,
    site: Site,
    api: FaultyApi,
    storage: Storage,
    cluster: Cluster,
) -> None:
    runs: list[Prepared] = []
    over = False
    while not over:
        runs.append(nth(len(runs) + 1, config_file, template, storage))
        over = survives(api, where, len(runs), launch_there, runs[-1], site)
        launch(runs[-1], storage, cluster)
        assert is_whole(runs[-1], storage, cluster)
    assert len(runs) > (5 if "store" in where else 2)
    assert names(cluster) == {run.run_id for run in runs}


def resume_there(prepared: Prepared, site: Site, number: int = 0) -> None:
    launch_there(prepared, site, number, resume=True)


def test_promise_2_a_resume_killed_at_any_request_is_made_good_by_the_next(
    config_file: Path, template: Manifest, site: Site, api: FaultyApi, storage: Storage, cluster: Cluster
) -> None:
    runs = [nth(number, config_file, template, storage) for number in range(1, 13)]
    with ThreadPoolExecutor() as each:  # of them fails meanwhile
        list(each.map(lambda run: launch(run, storage, cluster), runs))
        list(each.map(lambda run: fail(cluster, run.run_id), runs))
    failed = {run.run_id: job_of(cluster, run.run_id)["metadata"]["uid"] for run in runs}
    for number, run in enumerate(runs, 1):
        over = survives(api, "before the API server's answer", number, resume_there, run, site)
        resumed = launch(run, storage, cluster, resume=True).job
        assert resumed
        assert resumed["metadata"]["uid"] != failed[run.run_id]
        if over:
            break
    assert 4 < number < len(runs)


def again_there(config_bytes: bytes, template: Manifest, freeze_in_pod: bool, site: Site, number: int = 0) -> None:
    storage = dying(site, number)
    fresh = prepare(config_bytes, "config.yaml", template, storage, "ada", True, freeze_in_pod)
    launch(fresh, storage, site.cluster)


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize("freeze_in_pod", [False, True], ids=["frozen", "to be frozen in its pod"])
def test_promise_2_a_fresh_run_whose_launcher_was_killed_is_finished_or_was_never_begun(
    where: str,
    freeze_in_pod: bool,
    config_file: Path,
    template: Manifest,
    site: Site,
    api: FaultyApi,
    storage: Storage,
    cluster: Cluster,
) -> None:
    number, runs, over = 0, set[str](), False
    while not over:
        number += 1
        body = nth(number, config_file, template, storage).config_bytes

        def fresh(resume: bool = False, body: bytes = body) -> Prepared:
            return prepare(body, "config.yaml", template, storage, "ada", True, freeze_in_pod, resume)

        printed = fresh().run_id
        over = survives(api, where, number, again_there, body, template, freeze_in_pod, site)
        begun = fresh().run_id != printed
        assert begun or cluster.get_job(printed) is None
        finished = fresh(resume=begun)
        assert finished.run_id == printed
        launch(finished, storage, cluster, resume=begun)
        following = fresh()
        assert launch(following, storage, cluster).created, "each ordinal has its own"
        runs |= {printed, following.run_id}
        assert names(cluster) == runs
        kept = storage.get(RunKeys(printed).config)
        assert kept
        assert kept[0] == body
    assert number > (5 if "store" in where else 2)
    assert len(runs) == 2 * number


def test_promise_2_a_lost_answer_never_doubles(
    prepared: Prepared, storage: Storage, api: FaultyApi, through: Cluster, cluster: Cluster
) -> None:
    api.faults = [only("POST", "/jobs", loses_the_answer, times=1)]
    launched = launch(prepared, storage, through)
    assert launched.job
    assert launched.job["metadata"]["uid"] == job_of(cluster, prepared.run_id)["metadata"]["uid"]
    assert api.count("POST", "/jobs") == 1
    assert [request.method for request in api.seen[:3]] == ["GET", "POST", "GET"]
    assert names(cluster) == {prepared.run_id}


def weakened(prepared: Prepared) -> Prepared:
    """The same with pods that a restricted namespace refuses: its Job is made all the same, with a warning."""
    job = copy.deepcopy(prepared.job)
    job["spec"]["template"]["spec"]["hostNetwork"] = True
    return replace(prepared, job=job)


def test_promise_9_a_warning_is_heard_though_the_answer_was_lost(
    prepared: Prepared, storage: Storage, api: FaultyApi, through: Cluster, cluster: Cluster
) -> None:
    api.faults = [only("POST", "/jobs", loses_the_answer, times=1)]
    with pytest.raises(ConfigError, match="hostNetwork"):
        launch(weakened(prepared), storage, through)
    assert api.count("POST", "/jobs") == 1
    until(lambda: not names(cluster))  # no Job is left whose pods are never made


def test_promise_9_a_warning_that_a_killed_launcher_got_is_heard_by_the_next(
    prepared: Prepared, storage: Storage, site: Site, api: FaultyApi, cluster: Cluster
) -> None:
    assert not survives(api, "before the API server's answer", 2, launch_there, weakened(prepared), site)
    assert names(cluster) == {prepared.run_id}
    with pytest.raises(ConfigError, match="hostNetwork") as refused:
        launch(prepared, storage, cluster)
    assert f"`finetune cancel {prepared.run_id}`" in refused.value.resolution
    assert names(cluster) == {prepared.run_id}, "somebody else may have made it"
    cancel(prepared.run_id, storage, cluster, "ada")
    assert launch(prepared, storage, cluster).created, "its template is in order"


def test_promise_9_a_job_with_a_pod_survives_a_namespace_that_has_grown_strict(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    def allow(level: str) -> None:
        labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn")}
        body, merge = {"metadata": {"labels": labels}}, "application/merge-patch+json"
        cluster.api.send("PATCH", f"/api/v1/namespaces/{cluster.namespace}", body=body, content_type=merge)

    def refused() -> bool:  # not at once: the API server has it from a cache
        try:
            cluster.create_job(weakened(prepared).job, dry_run=True)
        except ConfigError:
            return True
        return False

    allow("privileged")
    until(lambda: not refused())
    first = launch(weakened(prepared), storage, cluster).job
    until(lambda: job_of(cluster, prepared.run_id)["status"].get("active"))
    allow("restricted")
    until(refused)
    joined = launch(prepared, storage, cluster)
    assert first
    assert joined.job
    assert (joined.created, joined.job["metadata"]["uid"]) == (False, first["metadata"]["uid"])
    assert "deletionTimestamp" not in job_of(cluster, prepared.run_id)["metadata"]


def answers_500(request: Request, send: Send) -> Answer:
    """The API server did as it was asked, and something before it says otherwise."""
    b"".join(send(request).chunks)
    return says(500)(request, send)


@pytest.mark.parametrize(
    ("fault", "asked"),
    [
        (says(429, retry_after=1), "GET POST GET POST GET POST"),
        (says(503), "GET POST GET POST GET POST"),
        (answers_500, "GET POST GET"),
    ],
    ids=["429", "503", "500 though it was done"],
)
def test_promise_39_a_refused_post_is_looked_up_before_it_is_sent_again(
    fault: Fault, asked: str, prepared: Prepared, storage: Storage, api: FaultyApi, through: Cluster, cluster: Cluster
) -> None:
    api.faults = [only("POST", "/jobs", fault, times=2)]
    assert launch(prepared, storage, through).job
    assert [request.method for request in api.seen if request.method != "PATCH"] == asked.split()
    assert names(cluster) == {prepared.run_id}


def test_promise_39_an_api_server_that_stays_busy_is_69_after_a_few_tries(
    prepared: Prepared, storage: Storage, api: FaultyApi, through: Cluster, cluster: Cluster
) -> None:
    api.faults = [only("POST", "/jobs", says(503))]
    with pytest.raises(UnavailableError, match="503"):
        launch(prepared, storage, through)
    assert api.count("POST", "/jobs") == 5
    assert names(cluster) == set()


# The same run id


def test_promise_3_another_spec_under_its_id_is_refused_with_the_difference(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(queued(prepared), storage, cluster)
    recipe = prepared.spec.recipe
    training = recipe.training.model_copy(update={"learning_rate": 0.5})
    other = prepared.spec.model_copy(update={"recipe": recipe.model_copy(update={"training": training})})
    storage.put(RunKeys(prepared.run_id).spec, canonical_bytes(other))
    before = at_rest(cluster, prepared.run_id)
    ours = recipe.training.learning_rate
    with pytest.raises(TakenError, match=rf"training\.learning_rate was 0\.5 and is {ours}") as refused:
        launch(prepared, storage, cluster)
    assert "max_steps" not in refused.value.message, "what is the same is not told"
    assert job_of(cluster, prepared.run_id)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_promise_5_a_resume_leaves_the_job_that_took_the_name_meanwhile(
    prepared: Prepared, storage: Storage, api: FaultyApi, through: Cluster, cluster: Cluster
) -> None:
    launch(prepared, storage, cluster)
    fail(cluster, prepared.run_id)
    api.on_request = swaps(prepared, cluster)
    launched = launch(prepared, storage, through, resume=True)
    assert api.count("DELETE", "/jobs") == 1
    assert (launched.created, launched.job) == (False, job_of(cluster, prepared.run_id))
    assert "deletionTimestamp" not in job_of(cluster, prepared.run_id)["metadata"]


def swaps(prepared: Prepared, cluster: Cluster) -> Callable[[int, str, str], object]:
    """Another launcher replaces the Job while a DELETE is on its way."""

    def swap(number: int, method: str, path: str) -> None:
        if method == "DELETE":
            delete(cluster, prepared.run_id)
            assert cluster.create_job(queued(prepared).job)

    return swap


def test_a_job_that_lives_is_joined(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    first = launch(prepared, storage, cluster)
    claim(storage, prepared, job_uid=first.job["metadata"]["uid"] if first.job else "", pod="mine")
    for resume in (False, True):
        joined = launch(prepared, storage, cluster, resume)
        assert joined.job
        assert first.job
        assert (joined.created, joined.job["metadata"]["uid"]) == (False, first.job["metadata"]["uid"])


def test_a_job_that_has_failed_is_told_and_goes_on_when_asked(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(prepared, storage, cluster)
    fail(cluster, prepared.run_id)
    failed = job_of(cluster, prepared.run_id)["metadata"]
    claim(storage, prepared, job_uid=failed["uid"], pod="its-own")
    with pytest.raises(RunFailed, match="Failed") as told:
        launch(prepared, storage, cluster)
    assert "--resume" in told.value.resolution
    assert job_of(cluster, prepared.run_id)["metadata"]["resourceVersion"] == failed["resourceVersion"]
    resumed = launch(prepared, storage, cluster, resume=True)
    assert resumed.job
    assert resumed.created
    assert (resumed.job["metadata"]["name"], resumed.job["metadata"]["uid"] != failed["uid"]) == (failed["name"], True)


def test_a_job_that_is_gone_is_created_again(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(prepared), storage, cluster)
    delete(cluster, prepared.run_id)
    assert launch(prepared, storage, cluster).created


def test_a_job_that_is_on_its_way_out_is_waited_for(
    prepared: Prepared, storage: Storage, api: FaultyApi, through: Cluster, cluster: Cluster
) -> None:
    old = hold(prepared, storage, cluster)
    assert cluster.delete_job(prepared.run_id, old)
    with ThreadPoolExecutor(1) as other:
        launching = other.submit(launch, prepared, storage, through)
        until(lambda: api.count("GET", "/jobs/") > 3)
        assert api.count("POST", "/jobs") == 0
        release(cluster, prepared.run_id)
        launched = launching.result(SECONDS)
    assert launched.job
    assert (launched.created, launched.job["metadata"]["uid"] != old) == (True, True)


def hold(prepared: Prepared, storage: Storage, cluster: Cluster) -> str:
    """Launches a Job that stays, once it is deleted, until it is released; its uid."""
    held = queued(prepared)
    held.job["metadata"]["finalizers"] = [HELD]
    launch(held, storage, cluster)
    uid: str = job_of(cluster, prepared.run_id)["metadata"]["uid"]
    return uid


def release(cluster: Cluster, run_id: str) -> None:
    """Lets go of it, as soon as nobody else holds it."""
    until(lambda: job_of(cluster, run_id)["metadata"]["finalizers"] == [HELD])
    uid = job_of(cluster, run_id)["metadata"]["uid"]
    cluster.patch_job(run_id, uid, {"metadata": {"finalizers": []}})


def test_a_cancelled_run_is_created_again_though_its_pod_may_beat(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    first = launch(prepared, storage, cluster).job
    assert first
    claim(storage, prepared, job_uid=first["metadata"]["uid"], pod="ending")
    cancel(prepared.run_id, storage, cluster, "ada")
    assert launch(prepared, storage, cluster).created


ELSEWHERE = {"site": "east", "namespace": "vision", "job_uid": "another", "pod": "bot-x"}


def test_an_attempt_elsewhere_that_beats_is_named_and_none_is_added(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    claim(storage, prepared, **ELSEWHERE)
    with pytest.raises(TakenError, match=r"attempt 1 \(site east, namespace vision, pod bot-x\)"):
        launch(prepared, storage, cluster)
    assert names(cluster) == set()


def test_an_attempt_elsewhere_that_beats_is_not_overtaken_by_a_resume(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(prepared, storage, cluster)
    fail(cluster, prepared.run_id)
    claim(storage, prepared, **ELSEWHERE)
    with pytest.raises(TakenError, match="site east"):
        launch(prepared, storage, cluster, resume=True)


def test_an_attempt_elsewhere_that_has_fallen_silent_is_taken_over(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    claim(storage, prepared, **ELSEWHERE)
    fall_silent(storage, prepared)
    assert launch(prepared, storage, cluster).created


def test_two_teams_with_one_root_do_not_run_the_same_twice(
    prepared: Prepared, storage: Storage, cluster: Cluster, plane: ControlPlane
) -> None:
    theirs = fresh_namespace(plane)
    first = launch(prepared, storage, theirs).job
    assert first
    claim(storage, prepared, namespace=theirs.namespace, job_uid=first["metadata"]["uid"], pod="theirs-1")
    with pytest.raises(TakenError, match=rf"namespace {theirs.namespace}, pod theirs-1"):
        launch(prepared, storage, cluster)
    assert names(cluster) == set()
    fall_silent(storage, prepared)
    assert launch(prepared, storage, cluster).created
    theirs.api.send("DELETE", f"/api/v1/namespaces/{theirs.namespace}")


# Inputs that the launcher may not read


def test_inputs_that_the_launcher_cannot_read_are_left_to_the_pod(
    config_file: Path, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    config = json.loads(config_file.read_text())
    config |= {"base_model": "s3://not-there/base/", "dataset": {"train": "s3://not-there/rows.jsonl"}}
    run = prepare(json.dumps(config).encode(), "config.yaml", template, storage, "ada", freeze_in_pod=True)
    launched = launch(run, storage, cluster)
    assert launched.created
    assert storage.get(RunKeys(run.run_id).spec) is None
    kept = storage.get(RunKeys(run.run_id).config)
    assert kept
    assert kept[0] == run.config_bytes
    assert not launch(run, storage, cluster).created


def test_the_id_of_a_run_that_its_pod_freezes_is_that_of_its_config(
    config_file: Path, template: Manifest, storage: Storage, tmp_path: Path
) -> None:
    def run_id(again: bool = False, in_pod: bool = True) -> str:
        return prepare(config_file.read_bytes(), "config.yaml", template, storage, "ada", again, in_pod).run_id

    before, here = run_id(), run_id(in_pod=False)
    assert run_id(again=True) != before
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() * 2)
    assert run_id() == before
    assert run_id(in_pod=False) != here
    config_file.write_text(config_file.read_text().replace('"max_steps": 1', '"max_steps": 2'))
    assert run_id() != before
