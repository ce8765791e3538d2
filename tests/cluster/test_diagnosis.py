"""Why a run does not go on, as a real API server, controllers and scheduler tell it. Each test has its recorded file.

The nodes here are objects without a machine: enough for the scheduler, as long as a test lasts.
"""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from job.contract.documents import Claim
from job.contract.errors import ConfigError
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes
from job.storage import Storage
from launcher.categories import Category
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.launching import Prepared
from launcher.manifest import QUEUE
from tests.cluster.conftest import post
from tests.cluster.recording import recorded

LABEL = "finetune.local/test"
MakeNode = Callable[..., str]


@pytest.fixture
def job(prepared: Prepared) -> Json:
    """A Job that asks for little."""
    small = {"cpu": "1", "memory": "1Gi"}
    prepared.job["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": small, "limits": dict(small)}
    return prepared.job


@pytest.fixture
def node(cluster: Cluster) -> Iterator[MakeNode]:
    """Makes a node that is ready, has the namespace's label, and is gone after the test."""
    name = f"node-{cluster.namespace}"
    path = f"/api/v1/nodes/{name}"

    def make(gpus: int = 0, **spec: object) -> str:
        has = {"cpu": "8", "memory": "32Gi", "pods": "10"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}
        post(cluster, "/api/v1/nodes", {"metadata": {"name": name, "labels": {LABEL: cluster.namespace}}, "spec": spec})
        status = {"capacity": has, "allocatable": has, "conditions": [ready]}
        merge = "application/merge-patch+json"
        cluster.api.send("PATCH", f"{path}/status", body={"status": status}, content_type=merge)
        # The one of a node that is not ready yet; a cordon has its own.
        cluster.api.send("PATCH", path, body={"spec": {"taints": spec.get("taints", [])}}, content_type=merge)
        return name

    yield make
    cluster.api.send("DELETE", path)


def pod_of(job: Json) -> Json:
    pod: Json = job["spec"]["template"]["spec"]
    return pod


def ask_for(job: Json, **resources: str) -> None:
    [container] = pod_of(job)["containers"]
    for kind in ("requests", "limits"):
        container["resources"][kind] |= resources


def run(job: Json, cluster: Cluster) -> str:
    """Creates it for the namespace's own node; its name."""
    pod_of(job).setdefault("nodeSelector", {LABEL: cluster.namespace})
    assert cluster.create_job(job)
    name: str = job["metadata"]["name"]
    return name


def bound(cluster: Cluster, run_id: str) -> Json:
    """The pod of a Job once it has a node."""
    deadline = time.monotonic() + 30
    while True:
        made = cluster.get_job(run_id)
        assert made
        if (pods := cluster.pods(made["metadata"]["uid"])) and pods[0]["spec"].get("nodeName"):
            return pods[0]
        assert time.monotonic() < deadline, pods
        time.sleep(0.2)


# No pod is made


def test_promise_8_quota_exceeded(job: Json, cluster: Cluster) -> None:
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
    post(cluster, f"/api/v1/namespaces/{cluster.namespace}/resourcequotas", quota)
    ask_for(job, **{"nvidia.com/gpu": "1"})
    said = recorded(Category.QUOTA_EXCEEDED, cluster, run(job, cluster)).said
    assert "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1" in said


def test_promise_9_pod_security_denied(job: Json, cluster: Cluster) -> None:
    pod_of(job)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")
    post(cluster, f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs", job)  # the launcher itself refuses it
    said = recorded(Category.POD_SECURITY_DENIED, cluster, job["metadata"]["name"]).said
    assert "allowPrivilegeEscalation != false" in said


def test_promise_10_account_missing(job: Json, cluster: Cluster) -> None:
    pod_of(job)["serviceAccountName"] = "nobody"
    found = recorded(Category.ACCOUNT_MISSING, cluster, run(job, cluster))
    assert "kubectl create serviceaccount nobody" in found.resolution


def test_promise_10_priority_class_missing(job: Json, cluster: Cluster) -> None:
    pod_of(job)["priorityClassName"] = "nowhere"
    assert "nowhere" in recorded(Category.PRIORITY_CLASS_MISSING, cluster, run(job, cluster)).said


def test_promise_11_policy_denied(job: Json, cluster: Cluster) -> None:
    name, admission = f"policy-{cluster.namespace}", "/apis/admissionregistration.k8s.io/v1"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    refusal = {"expression": "false", "message": "images are named by digest"}
    policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [refusal]}
    post(cluster, f"{admission}/validatingadmissionpolicies", {"metadata": {"name": name}, "spec": policy})
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": here}
    post(cluster, f"{admission}/validatingadmissionpolicybindings", {"metadata": {"name": name}, "spec": binding})
    pods, probe = f"/api/v1/namespaces/{cluster.namespace}/pods", {"metadata": {"name": "probe"}, "spec": pod_of(job)}

    def until_refused() -> None:  # not at once: the API server compiles it first
        for _ in range(150):
            cluster.api.send("POST", pods, {"dryRun": "All"}, probe)
            time.sleep(0.2)

    with pytest.raises(ConfigError, match="denied request"):
        until_refused()
    assert "images are named by digest" in recorded(Category.POLICY_DENIED, cluster, run(job, cluster)).said


def test_promise_10_queue_missing(job: Json, cluster: Cluster) -> None:
    job["metadata"]["labels"][QUEUE] = "gpus"
    job["spec"]["suspend"] = True
    assert "LocalQueue gpus" in recorded(Category.QUEUE_MISSING, cluster, run(job, cluster)).summary


def test_promise_13_suspended(job: Json, cluster: Cluster) -> None:
    job["spec"]["suspend"] = True
    assert '{"spec": {"suspend": false}}' in recorded(Category.SUSPENDED, cluster, run(job, cluster)).resolution


# No node takes it


def test_promise_15_no_gpu(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(gpus=1)
    ask_for(job, **{"nvidia.com/gpu": "2"})
    assert "Insufficient nvidia.com/gpu" in recorded(Category.NO_GPU, cluster, run(job, cluster)).said


def test_promise_15_insufficient_resources(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    ask_for(job, memory="64Gi")
    assert "Insufficient memory" in recorded(Category.INSUFFICIENT_RESOURCES, cluster, run(job, cluster)).said


def test_promise_15_tainted(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(taints=[{"key": "team", "value": "vision", "effect": "NoSchedule"}])
    assert "untolerated taint" in recorded(Category.TAINTED, cluster, run(job, cluster)).said


def test_promise_15_cordoned(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(unschedulable=True)
    assert "were unschedulable" in recorded(Category.CORDONED, cluster, run(job, cluster)).said


def test_promise_15_no_node_matches(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    pod_of(job)["nodeSelector"] = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert "node affinity/selector" in recorded(Category.NO_NODE_MATCHES, cluster, run(job, cluster)).said


def test_promise_15_volume_unbound(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    claims = f"/api/v1/namespaces/{cluster.namespace}/persistentvolumeclaims"
    post(cluster, claims, {"metadata": {"name": "scratch"}, "spec": claim})
    [scratch] = [volume for volume in pod_of(job)["volumes"] if volume["name"] == "scratch"]
    del scratch["emptyDir"]
    scratch["persistentVolumeClaim"] = {"claimName": "scratch"}
    assert "PersistentVolumeClaims" in recorded(Category.VOLUME_UNBOUND, cluster, run(job, cluster)).said


def test_promise_15_unschedulable(job: Json, cluster: Cluster) -> None:
    pod_of(job)["schedulingGates"] = [{"name": "finetune.local/test"}]
    assert "scheduling gates" in recorded(Category.UNSCHEDULABLE, cluster, run(job, cluster)).said


# It had a node


def test_preempted(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(gpus=1)
    ask_for(job, **{"nvidia.com/gpu": "1"})
    bound(cluster, run_id := run(job, cluster))
    urgent = f"urgent-{cluster.namespace}"
    post(cluster, "/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": urgent}, "value": 1000})
    rival = {**pod_of(job), "priorityClassName": urgent}
    post(cluster, f"/api/v1/namespaces/{cluster.namespace}/pods", {"metadata": {"name": "rival"}, "spec": rival})
    found = recorded(Category.PREEMPTED, cluster, run_id)
    assert (found.by, "preempting" in found.said) == ("scheduler", True)


def test_disrupted(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    name = bound(cluster, run_id := run(job, cluster))["metadata"]["name"]
    pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
    post(
        cluster, f"{pods}/{name}/eviction", {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    )
    assert recorded(Category.DISRUPTED, cluster, run_id).by == "API server"


def test_node_lost(job: Json, cluster: Cluster, node: MakeNode) -> None:
    name = node()
    pod = bound(cluster, run_id := run(job, cluster))["metadata"]["name"]
    cluster.api.send("DELETE", f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}", body={"gracePeriodSeconds": 1})
    found = recorded(Category.NODE_LOST, cluster, run_id, later=timedelta(minutes=5))
    assert f"kubectl taint nodes {name} node.kubernetes.io/out-of-service" in found.resolution


def test_deadline_exceeded(job: Json, cluster: Cluster, storage: Storage) -> None:
    job["spec"]["activeDeadlineSeconds"] = 1
    run_id = run(job, cluster)
    made = cluster.get_job(run_id)
    assert made
    claim = Claim(attempt=1, spec_sha256="0" * 64, owner="o", job_uid=made["metadata"]["uid"])
    storage.put(RunKeys(run_id).attempt(1).claim, canonical_bytes(claim))
    found = recorded(Category.DEADLINE_EXCEEDED, cluster, run_id, storage)
    assert (found.by, "compute.max_hours" in found.resolution) == ("controller manager", True)


def test_what_never_ran_is_told_rather_than_the_deadline(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    ask_for(job, **{"nvidia.com/gpu": "1"})
    run_id = run(job, cluster)
    recorded(Category.NO_GPU, cluster, run_id, variant="ended")
    made = cluster.get_job(run_id)
    assert made
    assert cluster.patch_job(run_id, made["metadata"]["uid"], {"spec": {"activeDeadlineSeconds": 1}})
    deadline = time.monotonic() + 30
    while "`launch --resume`" not in recorded(Category.NO_GPU, cluster, run_id, variant="ended").resolution:
        assert time.monotonic() < deadline, "the Job ends"
        time.sleep(0.2)
