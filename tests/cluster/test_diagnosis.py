"""Why a run does not go on, as a real API server, controllers and scheduler tell it. Each test has its recorded file.

The nodes here are objects without a machine: enough for the scheduler, as long as a test lasts.
"""

import json
import os
import ssl
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from examples.cache import CACHE
from examples.cluster.control_plane import ControlPlane, control_plane
from examples.cluster.site import kubectl
from examples.demo.server import free_ports
from job.contract.documents import Claim
from job.contract.errors import JobError
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.launching import Prepared
from launcher.manifest import QUEUE, Manifest
from launcher.scheduling import schedule
from tests.cluster.conftest import fresh_namespace, post, post_urgent_pod, until
from tests.cluster.recording import recorded

LABEL = "finetune.local/test"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MERGE = "application/merge-patch+json"
MakeNode = Callable[..., str]
T = TypeVar("T")
Nightly = Callable[[timedelta], None]


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
        cluster.api.send("PATCH", f"{path}/status", body={"status": status}, content_type=MERGE)
        # The one of a node that is not ready yet; a cordon has its own.
        cluster.api.send("PATCH", path, body={"spec": {"taints": spec.get("taints", [])}}, content_type=MERGE)
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


def mount_a_claim(job: Json) -> None:
    """The scratch of its pod is the PersistentVolumeClaim of that name."""
    [scratch] = [volume for volume in pod_of(job)["volumes"] if volume["name"] == "scratch"]
    del scratch["emptyDir"]
    scratch["persistentVolumeClaim"] = {"claimName": "scratch"}


def run(job: Json, cluster: Cluster) -> str:
    """Creates it for the namespace's own node; its name."""
    pod_of(job).setdefault("nodeSelector", {LABEL: cluster.namespace})
    assert cluster.create_job(job)
    name: str = job["metadata"]["name"]
    return name


def bound(cluster: Cluster, run_id: str) -> Json:
    """The pod of a Job once it has a node."""
    uid = uid_of(cluster, run_id)
    return until(lambda: [pod for pod in cluster.pods(uid) if pod["spec"].get("nodeName")])[0]


def claimed(cluster: Cluster, storage: Storage, run_id: str) -> None:
    """An attempt of this Job has begun."""
    claim = Claim(attempt=1, spec_sha256="0" * 64, owner="o", job_uid=uid_of(cluster, run_id))
    storage.put(RunKeys(run_id).attempt(1).claim, canonical_bytes(claim))


def uid_of(cluster: Cluster, run_id: str) -> str:
    made = cluster.get_job(run_id)
    assert made
    uid: str = made["metadata"]["uid"]
    return uid


def end(cluster: Cluster, run_id: str) -> None:
    """Its deadline is over."""
    assert cluster.patch_job(run_id, uid_of(cluster, run_id), {"spec": {"activeDeadlineSeconds": 1}})


def delete_pod(cluster: Cluster, name: str, grace_seconds: int) -> None:
    options = {"gracePeriodSeconds": grace_seconds}
    cluster.api.send("DELETE", f"/api/v1/namespaces/{cluster.namespace}/pods/{name}", body=options)


# Who refuses a pod or a Job


def admission(cluster: Cluster, group: str, resource: str) -> Json:
    """That it is asked about each new one of the namespace."""
    rule = {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}}
    return {"rules": [rule], "namespaceSelector": here}


def deny(cluster: Cluster, group: str, resource: str, message: str) -> None:
    """A policy that refuses each new one of the namespace."""
    name, asked = f"{resource}-{cluster.namespace}", admission(cluster, group, resource)
    refusal = {"expression": "false", "message": message}
    policy = {"matchConstraints": {"resourceRules": asked["rules"]}, "validations": [refusal]}
    post(cluster, f"{ADMISSION}/validatingadmissionpolicies", {"metadata": {"name": name}, "spec": policy})
    here = {"namespaceSelector": asked["namespaceSelector"]}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": here}
    post(cluster, f"{ADMISSION}/validatingadmissionpolicybindings", {"metadata": {"name": name}, "spec": binding})


def call(cluster: Cluster, url: str, authority: Path | None = None) -> None:
    """A webhook that is asked about each new pod of the namespace."""
    bundle = {"caBundle": b64encode(authority.read_bytes()).decode()} if authority else {}
    hook = {
        "name": "teams.example.com",
        "clientConfig": {"url": url} | bundle,
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    body = {"metadata": {"name": cluster.namespace}, "webhooks": [hook | admission(cluster, "", "pods")]}
    post(cluster, f"{ADMISSION}/validatingwebhookconfigurations", body)


def wait_until_refused(cluster: Cluster, path: str, probe: Json, words: str) -> None:
    """Not at once: the API server hears of what was made from a watch, and compiles a policy first."""

    def probe_again() -> None:
        for _ in range(150):
            cluster.api.send("POST", path, {"dryRun": "All"}, probe)
            time.sleep(0.2)

    with pytest.raises(JobError, match=words):
        probe_again()


def wait_until_pods_are_refused(cluster: Cluster, job: Json, words: str) -> None:
    probe = {"metadata": {"name": "probe"}, "spec": pod_of(job)}
    wait_until_refused(cluster, f"/api/v1/namespaces/{cluster.namespace}/pods", probe, words)


class Refuses(BaseHTTPRequestHandler):
    """An admission webhook that takes no pod: another company's software."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refusal = {
            "uid": asked["request"]["uid"],
            "allowed": False,
            "status": {"message": "the label team is required"},
        }
        answer = {"apiVersion": asked["apiVersion"], "kind": asked["kind"], "response": refusal}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def refuses(plane: ControlPlane) -> Iterator[str]:
    """Where the webhook is: its certificate is the API server's own, and so for this address."""
    pki = plane.directory / "pki"
    if not pki.exists():
        pytest.skip("the API server's certificate is not here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# No pod is made


def test_promise_8_quota_exceeded(job: Json, cluster: Cluster) -> None:
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "0"}}}
    post(cluster, f"/api/v1/namespaces/{cluster.namespace}/resourcequotas", quota)
    ask_for(job, **{"nvidia.com/gpu": "1"})
    said = recorded("quota_exceeded", cluster, run(job, cluster)).said
    assert "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1" in said


def test_promise_9_pod_security_denied(job: Json, cluster: Cluster) -> None:
    pod_of(job)["containers"][0]["securityContext"].pop("allowPrivilegeEscalation")
    post(cluster, f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs", job)  # the launcher itself refuses it
    said = recorded("pod_security_denied", cluster, job["metadata"]["name"]).said
    assert "allowPrivilegeEscalation != false" in said


def test_promise_10_account_missing(job: Json, cluster: Cluster) -> None:
    pod_of(job)["serviceAccountName"] = "nobody"
    found = recorded("account_missing", cluster, run(job, cluster))
    assert "kubectl create serviceaccount nobody" in found.resolution


def test_promise_10_priority_class_missing(job: Json, cluster: Cluster) -> None:
    pod_of(job)["priorityClassName"] = "nowhere"
    assert "nowhere" in recorded("priority_class_missing", cluster, run(job, cluster)).said


def test_promise_11_policy_denied(job: Json, cluster: Cluster) -> None:
    deny(cluster, "", "pods", "images are named by digest")
    wait_until_pods_are_refused(cluster, job, "denied request")
    assert "images are named by digest" in recorded("policy_denied", cluster, run(job, cluster)).said


def test_promise_11_a_webhook_denies_it(job: Json, cluster: Cluster, plane: ControlPlane, refuses: str) -> None:
    call(cluster, refuses, plane.directory / "pki" / "ca.crt")
    wait_until_pods_are_refused(cluster, job, "denied the request")
    assert "the label team is required" in recorded("policy_denied-webhook", cluster, run(job, cluster)).said


def test_promise_11_a_webhook_is_out_of_reach(job: Json, cluster: Cluster) -> None:
    call(cluster, "https://127.0.0.1:1")
    wait_until_pods_are_refused(cluster, job, "failed calling webhook")
    assert "connection refused" in recorded("not_created", cluster, run(job, cluster)).said


def test_promise_10_queue_missing(job: Json, cluster: Cluster) -> None:
    job["metadata"]["labels"][QUEUE] = "gpus"
    job["spec"]["suspend"] = True
    assert "LocalQueue gpus" in recorded("queue_missing", cluster, run(job, cluster)).summary


# Kueue's manager waits until each of these has the authority that it makes. No webhook: they fill in what is left out.
KUEUE_NEEDS = """
{apiVersion: v1, kind: Namespace, metadata: {name: kueue-system}}
---
{apiVersion: v1, kind: Secret, metadata: {name: kueue-webhook-server-cert, namespace: kueue-system}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: kueue-validating-webhook-configuration}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: kueue-mutating-webhook-configuration}
"""
KUEUE_CONFIGURATION = """
apiVersion: config.kueue.x-k8s.io/v1beta2
kind: Configuration
health: {{healthProbeBindAddress: "127.0.0.1:0"}}
metrics: {{bindAddress: "0"}}
webhook: {{host: 127.0.0.1, port: {port}, certDir: {certificates}}}
leaderElection: {{leaderElect: false}}
integrations: {{frameworks: [batch/job]}}
"""
ONE_CPU = """
{{apiVersion: kueue.x-k8s.io/v1beta2, kind: ResourceFlavor, metadata: {{name: any}}}}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {{name: team}}
spec:
  namespaceSelector: {{}}
  resourceGroups:
    - coveredResources: [cpu, memory]
      flavors: [{{name: any, resources: [{{name: cpu, nominalQuota: 1}}, {{name: memory, nominalQuota: 8Gi}}]}}]
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {{name: gpus, namespace: {namespace}}}
spec: {{clusterQueue: team}}
"""


def start_kueue(plane: ControlPlane, directory: Path) -> None:
    """The real one, built once from Go modules."""
    module, version = "sigs.k8s.io/kueue", "0.17.0"
    built = CACHE / f"kueue-{version}"
    go = {**os.environ, "GOBIN": str(built), "CGO_ENABLED": "0"}
    go["PATH"] += f":{CACHE}/kubernetes-1.37/go/bin"  # where the control plane's build puts it, if there was none
    told = subprocess.check_output(["go", "mod", "download", "-json", f"{module}@v{version}"], env=go)
    if not (built / "kueue").exists():
        subprocess.run(["go", "install", "-ldflags=-s -w", f"{module}/cmd/kueue@v{version}"], env=go, check=True)
    kubeconfig, certificates = str(plane.kubeconfig()), directory / "certificates"
    definitions = kubectl(kubeconfig, "kustomize", f"{json.loads(told)['Dir']}/config/components/crd")
    kubectl(kubeconfig, "apply", "--server-side", "-f", "-", given=f"{definitions}\n---{KUEUE_NEEDS}")
    [port] = free_ports(1)
    (directory / "kueue.yaml").write_text(KUEUE_CONFIGURATION.format(port=port, certificates=certificates))
    flags = [
        "--feature-gates=VisibilityOnDemand=false",
        f"--config={directory}/kueue.yaml",
        f"--kubeconfig={kubeconfig}",
    ]
    plane.start("kueue", [str(built / "kueue"), *flags])
    secret = ["get", "secret", "--namespace=kueue-system", "kueue-webhook-server-cert", "--output=json"]
    made = until(lambda: json.loads(kubectl(kubeconfig, *secret)).get("data"))
    certificates.mkdir()
    for name, text in made.items():  # a kubelet would mount it
        (certificates / name).write_bytes(b64decode(text))


@pytest.mark.skipif(os.environ.get("FINETUNE_RECORD") != "1", reason="builds Kueue, once: 5 minutes on two cores")
def test_it_waits_for_quota_in_its_queue(job: Json, tmp_path: Path) -> None:
    """In a cluster of its own, as no other test is to meet Kueue."""
    job["metadata"]["labels"][QUEUE] = "gpus"
    job["spec"]["suspend"] = True
    with control_plane(tmp_path / "plane") as plane:
        start_kueue(plane, tmp_path)
        cluster = fresh_namespace(plane)
        queue = ONE_CPU.format(namespace=cluster.namespace)
        kubectl(str(plane.kubeconfig()), "apply", "--server-side", "-f", "-", given=queue)
        first = run({**job, "metadata": job["metadata"] | {"name": "first"}}, cluster)
        until(lambda: not (cluster.get_job(first) or job)["spec"]["suspend"])
        found = recorded("queued", cluster, run(job, cluster), words="Kueue says")
    assert "insufficient unused quota for cpu" in found.said


def test_promise_13_suspended(job: Json, cluster: Cluster) -> None:
    job["spec"]["suspend"] = True
    assert '{"spec": {"suspend": false}}' in recorded("suspended", cluster, run(job, cluster)).resolution


# No node takes it


def test_promise_15_no_gpu(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(gpus=1)
    ask_for(job, **{"nvidia.com/gpu": "2"})
    assert "Insufficient nvidia.com/gpu" in recorded("no_gpu", cluster, run(job, cluster)).said


def test_promise_15_insufficient_resources(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    ask_for(job, memory="64Gi")
    assert "Insufficient memory" in recorded("insufficient_resources", cluster, run(job, cluster)).said


def test_promise_15_tainted(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(taints=[{"key": "team", "value": "vision", "effect": "NoSchedule"}])
    assert "untolerated taint" in recorded("tainted", cluster, run(job, cluster)).said


def test_promise_15_cordoned(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(unschedulable=True)
    assert "were unschedulable" in recorded("cordoned", cluster, run(job, cluster)).said


def test_promise_15_no_node_matches(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    pod_of(job)["nodeSelector"] = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert "node affinity/selector" in recorded("no_node_matches", cluster, run(job, cluster)).said


def test_promise_15_volume_unbound(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    claims = f"/api/v1/namespaces/{cluster.namespace}/persistentvolumeclaims"
    post(cluster, claims, {"metadata": {"name": "scratch"}, "spec": claim})
    mount_a_claim(job)
    assert "PersistentVolumeClaims" in recorded("volume_unbound", cluster, run(job, cluster)).said


def test_promise_15_the_claim_of_a_volume_is_missing(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    mount_a_claim(job)
    found = recorded("volume_unbound-missing", cluster, run(job, cluster))
    assert 'persistentvolumeclaim "scratch" not found' in found.said


def test_promise_15_unschedulable(job: Json, cluster: Cluster) -> None:
    pod_of(job)["schedulingGates"] = [{"name": "finetune.local/test"}]
    assert "scheduling gates" in recorded("unschedulable", cluster, run(job, cluster)).said


# It had a node


def test_preempted(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node(gpus=1)
    ask_for(job, **{"nvidia.com/gpu": "1"})
    bound(cluster, run_id := run(job, cluster))
    post_urgent_pod(cluster, f"urgent-{cluster.namespace}", pod_of(job))
    found = recorded("preempted", cluster, run_id)
    assert (found.by, "preempting" in found.said) == ("scheduler", True)


def test_disrupted(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    name = bound(cluster, run_id := run(job, cluster))["metadata"]["name"]
    pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
    post(
        cluster, f"{pods}/{name}/eviction", {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    )
    assert recorded("disrupted", cluster, run_id).by == "API server"


def test_node_lost(job: Json, cluster: Cluster, node: MakeNode) -> None:
    name = node()
    pod = bound(cluster, run_id := run(job, cluster))["metadata"]["name"]
    delete_pod(cluster, pod, grace_seconds=1)
    found = recorded("node_lost", cluster, run_id, later=timedelta(minutes=5))
    assert f"kubectl taint nodes {name} node.kubernetes.io/out-of-service" in found.resolution


def test_a_lost_node_holds_a_job_whose_deadline_is_over(job: Json, cluster: Cluster, node: MakeNode) -> None:
    name = node()
    bound(cluster, run_id := run(job, cluster))
    end(cluster, run_id)
    recorded("node_lost-deadline", cluster, run_id, words=f"kubectl taint nodes {name}", later=timedelta(minutes=5))
    found = cluster.get_job(run_id)
    assert found
    assert [condition["reason"] for condition in found["status"]["conditions"]] == ["DeadlineExceeded"]


def test_deadline_exceeded(job: Json, cluster: Cluster, storage: Storage) -> None:
    job["spec"]["activeDeadlineSeconds"] = 1
    claimed(cluster, storage, run_id := run(job, cluster))
    found = recorded("deadline_exceeded", cluster, run_id, storage)
    assert (found.by, "compute.max_hours" in found.resolution) == ("controller manager", True)


def test_what_never_ran_is_told_rather_than_the_deadline(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    ask_for(job, **{"nvidia.com/gpu": "1"})
    run_id = run(job, cluster)
    recorded("no_gpu-ended", cluster, run_id)
    end(cluster, run_id)
    recorded("no_gpu-ended", cluster, run_id, words="`launch --resume`")


def test_what_kept_a_pod_from_being_made_is_told_rather_than_the_deadline(job: Json, cluster: Cluster) -> None:
    pod_of(job)["priorityClassName"] = "nowhere"
    run_id = run(job, cluster)
    recorded("priority_class_missing-ended", cluster, run_id)
    end(cluster, run_id)
    recorded("priority_class_missing-ended", cluster, run_id, words="`launch --resume`")


def test_a_job_that_is_deleted_while_its_pod_ends(job: Json, cluster: Cluster, node: MakeNode) -> None:
    node()
    bound(cluster, run_id := run(job, cluster))
    assert cluster.delete_job(run_id, uid_of(cluster, run_id))
    assert "`launch` goes on" in recorded("deleted-ending", cluster, run_id).resolution


def test_a_job_that_was_deleted(job: Json, cluster: Cluster, storage: Storage, node: MakeNode) -> None:
    """Its events are still there, and no node would take its pod: that is history."""
    node()
    ask_for(job, **{"nvidia.com/gpu": "1"})
    claimed(cluster, storage, run_id := run(job, cluster))
    until(lambda: [event for event in cluster.events_of(run_id) if event["reason"] == "FailedScheduling"])
    uid = uid_of(cluster, run_id)
    assert cluster.delete_job(run_id, uid)
    cluster.wait_until_gone(run_id, uid)
    assert "`launch` goes on" in recorded("deleted", cluster, run_id, storage, later=timedelta(minutes=5)).resolution


# A night does not start


@pytest.fixture
def nightly(config_file: Path, template: Manifest, storage: Storage, cluster: Cluster) -> Nightly:
    """Schedules a night for a time that is just over, or moves it there."""

    def make(ago: timedelta) -> None:
        cron, body = f"{datetime.now(UTC) - ago:%M %H * * *}", config_file.read_bytes()
        schedule(body, str(config_file), template, storage, cluster, cron, "Etc/UTC", "ada")

    return make


def miss(cluster: Cluster) -> None:
    """The controller learns that it has not started one for a day, and so that one is due."""
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%dT%H:%M:00Z}"
    path = f"/apis/batch/v1/namespaces/{cluster.namespace}/cronjobs/bot/status"
    cluster.api.send("PATCH", path, body={"status": {"lastScheduleTime": yesterday}}, content_type=MERGE)


def test_a_night_that_a_policy_denies(nightly: Nightly, prepared: Prepared, cluster: Cluster) -> None:
    nightly(timedelta(minutes=2))
    deny(cluster, "batch", "jobs", "nobody trains here")
    wait_until_refused(
        cluster, f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs", prepared.job, "nobody trains here"
    )
    miss(cluster)
    assert "Error creating job" in recorded("policy_denied-night", cluster, "bot").said


def test_a_night_that_the_last_one_holds_back(nightly: Nightly, cluster: Cluster, node: MakeNode) -> None:
    node()  # else it is told what holds the last one
    nightly(timedelta(minutes=3))
    miss(cluster)
    [night] = until(lambda: (cluster.get_cronjob("bot") or {})["status"].get("active"))
    bound(cluster, night["name"])
    time.sleep(1)  # most events tell whole seconds, and the scheduler's do not
    nightly(timedelta(minutes=1))
    miss(cluster)
    assert "prior execution is running" in recorded("night_skipped", cluster, "bot").said
