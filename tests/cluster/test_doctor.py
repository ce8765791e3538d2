"""`doctor` on a real API server with its real controllers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from examples.cluster.control_plane import ControlPlane
from job.contract.errors import ConfigError
from job.contract.keys import RunKeys
from job.storage import Storage
from job.storage.opening import open_storage
from job.storage.s3_client import forget_client
from launcher.cluster import Cluster
from launcher.doctor import NEEDED, Check, Right, code_of, examine
from launcher.kube import Api, Json
from launcher.launching import Prepared, launch
from launcher.manifest import QUEUE, SELECTOR, Manifest
from tests.cluster.conftest import post, until
from tests.storage.faulty_s3 import faulty_s3
from tests.storage.test_faults import honours_no_condition

GPU = "nvidia.com/gpu"
MIB = 1 << 20


def look(template: Manifest, storage: Storage, cluster: Cluster, **more: object) -> dict[str, Check]:
    checks = examine(template, lambda: storage, lambda: cluster, upload_bytes=MIB, **more)  # type: ignore[arg-type]
    return {check.name: check for check in checks}


def delete(cluster: Cluster, path: str) -> None:
    cluster.api.send("DELETE", path, body={})


def away(cluster: Cluster) -> Cluster:
    client = copy.copy(cluster.api.client)
    client.configuration = copy.copy(client.configuration)
    client.configuration.host = "https://127.0.0.1:1"
    return Cluster(Api(client), cluster.namespace)


def test_an_admin_in_a_whole_namespace_may_launch(template: Manifest, storage: Storage, cluster: Cluster) -> None:
    checks = look(template, storage, cluster)
    assert code_of(checks.values()) == 0
    assert [name for name, check in checks.items() if check.ok] == [
        "cluster",
        "rights",
        "namespace",
        "service-account",
        "quota",
        "pending",
        "store",
        "upload-rate",
    ]
    assert cluster.version() in checks["cluster"].message
    assert cluster.namespace in checks["cluster"].message
    assert "restricted" in checks["namespace"].message
    assert all(not check.resolution for check in checks.values() if check.ok)


# Rights


def grant(cluster: Cluster, user: str, rights: list[Right]) -> None:
    """A role of exactly these rights, and its binding."""
    rules = [{"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]} for right in rights]
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{cluster.namespace}"
    post(cluster, f"{path}/roles", {"metadata": {"name": user}, "rules": rules})
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": user},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }
    post(cluster, f"{path}/rolebindings", binding)


def impersonating(plane: ControlPlane, cluster: Cluster, user: str) -> Cluster:
    return Cluster.connect(str(plane.kubeconfig()), namespace=cluster.namespace, user=user)


def test_promise_12_each_right_that_is_missing_is_named(
    plane: ControlPlane, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    lacking = {f"lacks-{number}": right for number, right in enumerate(NEEDED)}
    for user, right in lacking.items():
        grant(cluster, user, [other for other in NEEDED if other != right])
    named: dict[str, tuple[list[str], int]] = {}
    expected = {user: ([str(right)], 77) for user, right in lacking.items()}

    def told(user: str) -> tuple[list[str], int]:
        checks = look(template, storage, impersonating(plane, cluster, user))
        rights = checks["rights"]
        assert rights.resolution
        return [str(right) for right in NEEDED if f"{right} (" in rights.message], code_of(checks.values())

    def settled() -> bool:
        named.update({user: told(user) for user in expected if named.get(user) != expected[user]})
        return named == expected

    until(settled)
    assert named == expected


def test_the_needed_rights_alone_are_enough(
    plane: ControlPlane, prepared: Prepared, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    grant(cluster, "launcher", list(NEEDED))
    launcher = impersonating(plane, cluster, "launcher")
    until(lambda: look(template, storage, launcher)["rights"].ok)
    checks = look(template, storage, launcher)
    assert code_of(checks.values()) == 0, checks
    for name, words in {"gpu-nodes": "cannot list resource", "service-account": "cannot get resource"}.items():
        assert checks[name].ok is None
        assert words in checks[name].message
    use_everything(launcher, prepared, storage)


def use_everything(cluster: Cluster, prepared: Prepared, storage: Storage) -> None:
    """All that the commands ask of a cluster; raises `PermissionDenied` where a right is missing."""
    job = launch(prepared, storage, cluster).job
    assert job
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    _, place = cluster.jobs(f"metadata.name={name}")
    assert [each["name"] for each in cluster.job_metadata(SELECTOR)] == [name]
    list(cluster.watch_jobs(f"metadata.name={name}", place, 1))
    cluster.pods(uid)
    cluster.events(uid)
    with pytest.raises(ConfigError, match="not found"):
        list(cluster.log("none", "trainer", None, False))
    night = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "night"},
        "spec": {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": prepared.job["spec"]}},
    }
    made = cluster.apply_cronjob(night)
    assert cluster.get_cronjob("night")
    assert [each["metadata"]["uid"] for each in cluster.cronjobs("")] == [made["metadata"]["uid"]]
    assert cluster.delete_cronjob("night", made["metadata"]["uid"])
    assert cluster.patch_job(name, uid, {"spec": {"suspend": True}})
    assert cluster.delete_job(name, uid)


def test_a_user_without_any_right_gets_every_other_check(
    plane: ControlPlane, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    checks = look(template, storage, impersonating(plane, cluster, f"nobody-{uuid4().hex[:8]}"))
    assert all(str(right) in checks["rights"].message for right in NEEDED)
    assert [name for name, check in checks.items() if check.ok is False] == ["rights"]
    assert checks["store"].ok


# What the template names


def test_a_missing_service_account_and_priority_class_are_named(
    template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    template["spec"]["template"]["spec"] |= {"serviceAccountName": "robot", "priorityClassName": "urgent"}
    checks = look(template, storage, cluster)
    assert code_of(checks.values()) == 78
    assert [name for name, check in checks.items() if check.ok is False] == ["service-account", "priority-class"]
    assert "service account robot" in checks["service-account"].message
    assert "PriorityClass urgent" in checks["priority-class"].message
    template["spec"]["template"]["spec"]["priorityClassName"] = "system-node-critical"
    assert look(template, storage, cluster)["priority-class"].ok


def test_a_namespace_that_is_not_there_is_named(template: Manifest, storage: Storage, cluster: Cluster) -> None:
    checks = look(template, storage, Cluster(cluster.api, "nowhere"))
    assert checks["namespace"].ok is False
    assert "nowhere" in checks["namespace"].message


@contextmanager
def local_queues(cluster: Cluster) -> Iterator[None]:
    """The API of Kueue's LocalQueues, without Kueue."""
    group, kind = "kueue.x-k8s.io", "LocalQueue"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    definition = {
        "metadata": {
            "name": f"localqueues.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": "localqueues"},
            "versions": [{"name": "v1beta1", "served": True, "storage": True, "schema": schema}],
        },
    }
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    post(cluster, path, definition)
    try:
        yield
    finally:
        delete(cluster, f"{path}/localqueues.{group}")


def test_a_queue_is_looked_for(template: Manifest, storage: Storage, cluster: Cluster) -> None:
    template["metadata"]["labels"][QUEUE] = "gpu"
    none = look(template, storage, cluster)["queue"]
    assert none.ok is False
    assert "serves no Kueue" in none.message
    with local_queues(cluster):
        path = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{cluster.namespace}/localqueues"
        until(lambda: cluster.exists(path))
        missing = look(template, storage, cluster)["queue"]
        assert missing.ok is False
        assert "LocalQueue gpu" in missing.message
        post(cluster, path, {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "LocalQueue", "metadata": {"name": "gpu"}})
        assert look(template, storage, cluster)["queue"].ok


# GPUs


@contextmanager
def nodes(cluster: Cluster, sizes: dict[str, int]) -> Iterator[None]:
    """Nodes that no kubelet stands behind, and that say they are ready."""
    try:
        for name, gpus in sizes.items():
            post(cluster, "/api/v1/nodes", {"metadata": {"name": name}})
            ready = {"type": "Ready", "status": "True", "reason": "Test", "message": ""}
            amounts = {"cpu": "8", "memory": "64Gi", "pods": "10", GPU: str(gpus)}
            status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
            patch(cluster, f"/api/v1/nodes/{name}/status", {"status": status})
        yield
    finally:
        for name in sizes:
            delete(cluster, f"/api/v1/nodes/{name}")


def patch(cluster: Cluster, path: str, change: Json) -> None:
    cluster.api.send("PATCH", path, body=change, content_type="application/merge-patch+json")


def test_gpu_nodes_are_counted_and_what_bars_one_is_named(
    template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    none = look(template, storage, cluster)["gpu-nodes"]
    assert none.ok is None
    assert f"no node has {GPU}" in none.message
    with nodes(cluster, {"big": 8, "small": 2, "foreign": 4}):
        taint = {"key": "team", "value": "infer", "effect": "NoSchedule"}
        until(lambda: not any(node["spec"].get("taints") for node in cluster.nodes()))
        patch(cluster, "/api/v1/nodes/foreign", {"spec": {"taints": [taint]}})
        found = look(template, storage, cluster)["gpu-nodes"]
        assert found.ok, found
        assert f"10 {GPU} on 2 nodes, at most 8 on one" in found.message
        assert "foreign (taint team=infer:NoSchedule)" in found.message
        patch(cluster, "/api/v1/nodes/big", {"spec": {"unschedulable": True}})
        template["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"][GPU] = 4
        small = look(template, storage, cluster)["gpu-nodes"]
        assert (small.ok, small.code) == (False, 78)
        assert "at most 2 on one" in small.message
        assert "big (cordoned" in small.message


def test_a_quota_of_gpus_is_shown(template: Manifest, storage: Storage, cluster: Cluster) -> None:
    path = f"/api/v1/namespaces/{cluster.namespace}/resourcequotas"
    post(cluster, path, {"metadata": {"name": "team"}, "spec": {"hard": {f"requests.{GPU}": "2"}}})
    shown = look(template, storage, cluster)["quota"]
    assert shown.ok
    assert f"0 of 2 {GPU}" in shown.message
    assert "team" in shown.message


# Runs that do not start


def test_a_run_that_has_been_pending_too_long_is_named(
    prepared: Prepared, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    assert cluster.create_job(prepared.job)
    queued = copy.deepcopy(prepared.job)
    queued["metadata"]["name"] = "queued"
    queued["spec"]["suspend"] = True
    foreign = copy.deepcopy(prepared.job)
    foreign["metadata"]["name"] = "foreign"
    del foreign["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    assert cluster.create_job(queued)
    assert cluster.create_job(foreign)
    assert look(template, storage, cluster)["pending"].ok
    until(lambda: look(template, storage, cluster, pending=timedelta(seconds=1))["pending"].ok is False)
    late = look(template, storage, cluster, pending=timedelta(seconds=1))["pending"]
    assert late.ok is False
    assert late.message.endswith(f": {prepared.run_id}")


# The store, and nothing that answers


def test_the_store_keeps_one_upload_and_the_probes(template: Manifest, storage: Storage, cluster: Cluster) -> None:
    for _ in range(2):
        assert "not from a pod" in look(template, storage, cluster)["upload-rate"].message
    kept = [stat for stat in storage.list("") if stat.size >= MIB]
    assert [(stat.key, stat.size) for stat in kept] == [(RunKeys("doctor").canary("upload"), MIB)]


def test_a_store_that_ignores_conditions_is_named(
    seaweed: str, bucket: str, template: Manifest, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_s3(seaweed) as (server, url):
        server.faults = [honours_no_condition]
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        forget_client()
        try:
            checks = look(template, open_storage(bucket), cluster)
        finally:
            monkeypatch.undo()
            forget_client()
    assert (checks["store"].ok, checks["store"].code) == (False, 78)
    assert "If-None-Match" in checks["store"].message
    assert "MB/s" in checks["upload-rate"].message


def test_a_root_that_cannot_be_written_hides_nothing_of_the_cluster(
    template: Manifest, tmp_path: Path, cluster: Cluster
) -> None:
    (tmp_path / "file").write_bytes(b"")
    checks = look(template, open_storage(str(tmp_path / "file" / "runs")), cluster)
    assert checks["store"].ok is False
    assert checks["upload-rate"].ok is None
    assert checks["service-account"].ok


def test_an_api_server_that_is_away_is_69_and_the_store_is_looked_at(
    template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    checks = look(template, storage, away(cluster))
    assert code_of(checks.values()) == 69
    assert [name for name, check in checks.items() if check.ok is False] == ["cluster"]
    assert checks["rights"].ok is None
    assert checks["store"].ok
