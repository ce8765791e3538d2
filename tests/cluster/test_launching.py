"""From a config to exactly one Job, on a real API server with its real controllers."""

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from job.contract.errors import ConfigError, TakenError, UnavailableError
from job.contract.keys import RunKeys, config_key
from job.run import Run
from job.storage import Storage
from launcher.cancelling import cancel
from launcher.cluster import Cluster
from launcher.deciding import RunFailed
from launcher.kube import Api, Json
from launcher.launching import Prepared, launch, prepare
from launcher.manifest import SELECTOR, SPEC_SHA256, Manifest
from tests.cluster.conftest import until
from tests.launcher.runs import publish


def fail(cluster: Cluster, name: str) -> None:
    """Lets the Job controller end a Job whose deadline has passed."""
    job = cluster.get_job(name)
    assert job
    assert cluster.patch_job(name, job["metadata"]["uid"], {"spec": {"activeDeadlineSeconds": 1}})

    def conditions() -> list[Json]:
        there = cluster.get_job(name)
        return [each for each in (there or {}).get("status", {}).get("conditions", ()) if each["type"] == "Failed"]

    until(conditions)


def test_a_launched_run_has_its_spec_and_its_job(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    launched = launch(prepared, storage, cluster)
    assert launched.created
    assert launched.job
    assert launched.job["metadata"]["name"] == prepared.run_id
    assert launched.job["metadata"]["annotations"][SPEC_SHA256] == prepared.spec_sha256
    spec = storage.get(RunKeys(prepared.run_id).spec)
    assert spec
    [container] = launched.job["spec"]["template"]["spec"]["containers"]
    [config] = [entry["value"] for entry in container["env"] if entry["name"] == "FINETUNE_CONFIG"]
    kept = storage.get(config.removeprefix(f"{storage.uri}/"))
    assert kept
    assert kept[0] == prepared.config_bytes
    assert "nvidia.com/gpu" not in container["resources"]["limits"], "a CPU was asked for"


def test_the_pods_of_the_shipped_template_are_made_in_a_restricted_namespace(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    job = launch(prepared, storage, cluster).job
    assert job
    assert len(until(lambda: cluster.pods(job["metadata"]["uid"]))) == 1


def test_the_same_twice_is_one_run(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    first, second = launch(prepared, storage, cluster), launch(prepared, storage, cluster)
    assert (first.created, second.created) == (True, False)
    assert first.job
    assert second.job
    assert first.job["metadata"]["uid"] == second.job["metadata"]["uid"]


def test_fifty_launchers_at_once_make_one_job(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    with ThreadPoolExecutor(50) as launchers:
        launched = list(launchers.map(lambda _: launch(prepared, storage, cluster), range(50)))
    assert sum(each.created for each in launched) == 1
    assert len({each.job["metadata"]["uid"] for each in launched if each.job}) == 1
    assert len(list(cluster.job_metadata(SELECTOR))) == 1


def test_a_job_of_another_spec_is_left_alone(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    other = copy.deepcopy(prepared.job)
    other["metadata"]["annotations"][SPEC_SHA256] = "0" * 64
    before = cluster.create_job(other)
    with pytest.raises(TakenError, match=r"0{64}, not [0-9a-f]{64}; neither its spec nor its config is in the store"):
        launch(prepared, storage, cluster)
    after = cluster.get_job(prepared.run_id)
    assert before
    assert after
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert list(storage.list("")) == []


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"max_steps": 1, "learning_rate": 0.5}, r"training\.learning_rate was 0\.5 and is 0\.0002$"),
        ({"max_steps": 1}, "the config is the same, so its inputs are others"),
    ],
    ids=["config", "inputs"],
)
def test_a_job_of_another_spec_is_told_by_the_difference(
    training: Json,
    words: str,
    prepared: Prepared,
    config_file: Path,
    template: Manifest,
    storage: Storage,
    cluster: Cluster,
) -> None:
    body = json.dumps(json.loads(config_file.read_text()) | {"training": training}).encode()
    storage.put(config_key(body), body)
    other = prepare(body, "config.yaml", template, storage, "ada", again=True).job
    other["metadata"]["name"] = prepared.run_id
    assert cluster.create_job(other)
    with pytest.raises(TakenError, match=words):
        launch(prepared, storage, cluster)
    assert [stat.key for stat in storage.list("")] == [config_key(body)]


def test_a_failed_job_is_resumed_only_when_asked(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    first = launch(prepared, storage, cluster)
    fail(cluster, prepared.run_id)
    with pytest.raises(RunFailed) as raised:
        launch(prepared, storage, cluster)
    assert "--resume" in raised.value.resolution
    resumed = launch(prepared, storage, cluster, resume=True)
    assert resumed.created
    assert first.job
    assert resumed.job
    assert resumed.job["metadata"]["uid"] != first.job["metadata"]["uid"]


def test_a_run_with_its_result_starts_nothing(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    publish(Run(storage, prepared.spec, prepared.run_id))
    launched = launch(prepared, storage, cluster)
    assert (launched.job, launched.created) == (None, False)
    assert list(cluster.job_metadata(SELECTOR)) == []


def test_again_is_another_run(
    prepared: Prepared, config_file: Path, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    launch(prepared, storage, cluster)
    again = prepare(config_file.read_bytes(), "config.yaml", template, storage, "ada", again=True)
    assert again.run_id != prepared.run_id
    assert launch(again, storage, cluster).created


def test_a_dry_run_writes_nothing(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    assert cluster.create_job(prepared.job, dry_run=True)
    assert list(cluster.job_metadata(SELECTOR)) == []
    assert list(storage.list("")) == []


WEAKENED = {
    "allowPrivilegeEscalation != false": lambda pod, box: box["securityContext"].pop("allowPrivilegeEscalation"),
    "unrestricted capabilities": lambda pod, box: box["securityContext"].pop("capabilities"),
    "runAsNonRoot != true": lambda pod, box: pod["securityContext"].pop("runAsNonRoot"),
    "runAsUser=0": lambda pod, box: pod["securityContext"].update(runAsUser=0),
    "seccompProfile": lambda pod, box: pod["securityContext"].pop("seccompProfile"),
    "hostNetwork": lambda pod, box: pod.update(hostNetwork=True),
    "privileged": lambda pod, box: box["securityContext"].update(privileged=True, allowPrivilegeEscalation=True),
    "hostPath": lambda pod, box: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
}


@pytest.mark.parametrize("words", WEAKENED)
def test_a_weakened_template_is_refused_in_the_servers_words(
    words: str, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    job = copy.deepcopy(prepared.job)
    pod = job["spec"]["template"]["spec"]
    WEAKENED[words](pod, pod["containers"][0])
    with pytest.raises(ConfigError, match=words):
        launch(replace(prepared, job=job), storage, cluster)
    until(lambda: not list(cluster.job_metadata(SELECTOR)))  # none is left whose pods are never made


def test_a_job_that_does_not_go_is_waited_for_by_its_pods_own_grace(
    prepared: Prepared, storage: Storage, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = copy.deepcopy(prepared.job)
    job["metadata"]["finalizers"] = ["finetune.local/test"]
    job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 600
    made = cluster.create_job(job)
    assert made
    uid, passed, real = made["metadata"]["uid"], [0.0], time.monotonic
    assert cluster.delete_job(prepared.run_id, uid)
    with monkeypatch.context() as clock:
        clock.setattr(time, "sleep", lambda seconds: passed.append(passed[-1] + 40 * seconds))
        clock.setattr(time, "monotonic", lambda: real() + passed[-1])
        with pytest.raises(UnavailableError, match="is not gone 660 s after its deletion"):
            cluster.wait_until_gone(prepared.run_id, uid)
    assert passed[-1] > 600
    cluster.patch_job(prepared.run_id, uid, {"metadata": {"finalizers": []}})


def test_a_misspelt_field_is_named(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    job = copy.deepcopy(prepared.job)
    job["spec"]["activeDeadlineSecond"] = 60
    with pytest.raises(ConfigError, match="activeDeadlineSecond"):
        launch(replace(prepared, job=job), storage, cluster)


def test_a_namespace_that_is_not_there_is_named(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        launch(prepared, storage, Cluster(cluster.api, "nowhere"))


def test_an_api_server_that_is_away_is_69(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    away = copy.copy(cluster.api.client)
    away.configuration = copy.copy(away.configuration)
    away.configuration.host = "https://127.0.0.1:1"
    with pytest.raises(UnavailableError, match="does not answer"):
        Cluster(Api(away), cluster.namespace).get_job("x")


def test_a_cancelled_run_has_no_job_and_says_who(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    job = launch(prepared, storage, cluster).job
    assert job
    cancelled = cancel(prepared.run_id, storage, cluster, "ada")
    assert (cancelled.by, cancelled.job_uid) == ("ada", job["metadata"]["uid"])
    assert cluster.get_job(prepared.run_id) is None
    cancel(prepared.run_id, storage, cluster, "bob")
    kept = storage.get(RunKeys(prepared.run_id).cancelled)
    assert kept
    assert b'"ada"' in kept[0], "the first word stands while nothing was launched since"


def test_a_job_that_the_launcher_did_not_make_is_not_cancelled(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    foreign = copy.deepcopy(prepared.job)
    foreign["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "somebody"
    assert cluster.create_job(foreign)
    with pytest.raises(TakenError, match="not made by the launcher"):
        cancel(prepared.run_id, storage, cluster, "ada")
    assert cluster.get_job(prepared.run_id)
