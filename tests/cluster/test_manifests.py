"""The manifests that a site applies, on a real API server; and the files for AWS and Prometheus, which none here takes."""

import copy
import ipaddress
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
import yaml

from examples.cluster.control_plane import ControlPlane
from job.contract.errors import ConfigError
from job.contract.keys import RunKeys, config_key, index_key, latest_key
from job.storage import Storage
from job.storage.canary import probe
from launcher.cluster import Cluster
from launcher.kube import Json
from tests.cluster.conftest import post
from tests.conftest import ROOT

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

K8S = ROOT / "k8s"
NAMESPACE = "finetune"
KUBECTL = Path(sys.executable).with_name("kubectl")
COMPONENTS = sorted({path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml")} - {"as-job", "as-nightly"})


def kubectl(*words: str | Path, plane: ControlPlane | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    cluster = (f"--kubeconfig={plane.kubeconfig()}", f"--cache-dir={plane.directory}/kubectl") if plane else ()
    return subprocess.run([KUBECTL, *words, *cluster], input=stdin, capture_output=True, text=True, check=False)


def build(directory: Path) -> str:
    built = kubectl("kustomize", directory)
    assert (built.returncode, built.stderr) == (0, ""), built.stderr
    return built.stdout


def build_of(tmp_path: Path, resource: str, *components: str) -> str:
    """A kustomization of one thing under k8s/ with some of its components."""
    tree = Path(os.path.relpath(K8S, tmp_path))
    kustomization = {
        "resources": [str(tree / resource)],
        "components": [str(tree / "overlays" / name) for name in components],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    return build(tmp_path)


def objects(text: str) -> list[Json]:
    return list(yaml.safe_load_all(text))


def dry_run(plane: ControlPlane, manifests: str) -> subprocess.CompletedProcess[str]:
    words = ("apply", "--dry-run=server", "--validate=strict", "-n", NAMESPACE, "-f", "-")
    return kubectl(*words, plane=plane, stdin=manifests)


@pytest.fixture(scope="session")
def applied(plane: ControlPlane) -> list[str]:
    """What each of two `kubectl apply -k k8s/base` said."""
    if not plane.server:
        pytest.skip("a person's own cluster has its own namespace finetune, which is left alone")
    said = [kubectl("apply", "-k", K8S / "base", plane=plane) for _ in range(2)]
    assert [(each.returncode, each.stderr) for each in said] == [(0, "")] * 2, said
    return [each.stdout for each in said]


@pytest.fixture(scope="session")
def policed(plane: ControlPlane, applied: list[str]) -> Cluster:
    """The namespace that ships, its policy in effect: an API server takes it up some time after it was made."""
    cluster = Cluster.connect(str(plane.kubeconfig()), namespace=NAMESPACE)
    wrong = yaml.safe_load((K8S / "job.yaml").read_bytes())
    wrong["spec"]["template"]["spec"]["containers"][0]["image"] = "elsewhere/finetune:1"
    deadline = time.monotonic() + 60
    while accepted(cluster, wrong):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return cluster


def accepted(cluster: Cluster, job: Json) -> bool:
    try:
        return bool(cluster.create_job(job, dry_run=True))
    except ConfigError:
        return False


def pod_of(job: Json) -> Json:
    pod: Json = job["spec"]["template"]["spec"]
    return pod


def night_of(job: Json) -> Json:
    """The shipped CronJob, with a Job's spec."""
    night: Json = yaml.safe_load((K8S / "nightly.yaml").read_bytes())
    night["spec"]["jobTemplate"]["spec"] = job["spec"]
    return night


# What is applied


def test_the_base_is_applied_once_and_then_unchanged(applied: list[str]) -> None:
    first, second = (each.splitlines() for each in applied)
    assert len(first) > 8
    assert [line for line in first if not line.endswith(" created")] == []
    assert [line for line in second if not line.endswith(" unchanged")] == []


@pytest.mark.parametrize("path", ["job.yaml", "nightly.yaml"])
def test_promise_9_the_templates_pass_strictly_without_a_warning(
    path: str, plane: ControlPlane, policed: Cluster
) -> None:
    told = dry_run(plane, (K8S / path).read_text())
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize("last", ["as-job", "as-nightly", "base"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_promise_9_every_overlay_passes_strictly_without_a_warning(
    component: str, last: str, plane: ControlPlane, policed: Cluster, tmp_path: Path
) -> None:
    """A component takes all the templates, and changes what it is for."""
    plain, changed = (
        build_of(tmp_path, "base", *components) if last == "base" else build_of(tmp_path, ".", *components, last)
        for components in ((), (component,))
    )
    told = dry_run(plane, changed)
    assert (told.returncode, told.stderr) == (0, "")
    kinds = [each["kind"] for each in objects(changed)]
    assert last == "base" or kinds == ["Job" if last == "as-job" else "CronJob"]
    of_the_base = {"eks-irsa": True, "eks-pod-identity": True, "own-s3": None}.get(component, False)
    assert (plain != changed) == (of_the_base is None or of_the_base == (last == "base"))


def test_the_readmes_site_passes_strictly_without_a_warning(
    plane: ControlPlane, policed: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "k8s").symlink_to(K8S)
    files = re.findall(r"^```yaml\n# (site/\S+)(.*?)^```", (K8S / "README.md").read_text(), re.M | re.S)
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"#{text}")
    built = {name: build(tmp_path / "site" / name) for name in ("base", "job", "nightly")}
    for manifests in built.values():
        told = dry_run(plane, manifests)
        assert (told.returncode, told.stderr) == (0, "")
    [job], [night] = objects(built["job"]), objects(built["nightly"])
    of_job, of_night = (pod_of(each)["containers"][0] for each in (job, night["spec"]["jobTemplate"]))
    assert of_job["image"] == of_night["image"] == "registry.example.com/ml/finetune:0.1.0"
    differing = [entry["name"] for entry in of_night["env"] if entry not in of_job["env"]]
    assert differing == ["FINETUNE_CONFIG", "FINETUNE_IMAGE"]


def test_a_misspelt_field_does_not_pass(plane: ControlPlane, policed: Cluster) -> None:
    told = dry_run(plane, (K8S / "job.yaml").read_text().replace("backoffLimit", "backofLimit"))
    assert (told.returncode, "backofLimit" in told.stderr) == (1, True)


def test_what_a_site_may_comment_in_passes_as_well(plane: ControlPlane, policed: Cluster) -> None:
    example = r"^( *)# (?=- [{]|- name:|  configMap:|imagePullSecrets:|nodeSelector:|example[.]com/)"
    text, commented_in = re.subn(example, r"\1", (K8S / "job.yaml").read_text(), flags=re.M)
    assert commented_in == 12
    told = dry_run(plane, text)
    assert (told.returncode, told.stderr) == (0, "")
    [job] = objects(text)
    variables = {entry["name"] for entry in pod_of(job)["containers"][0]["env"]}
    assert {"AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "HTTPS_PROXY", "NO_PROXY"} <= variables


def test_a_night_is_the_job_template() -> None:
    job, night = (yaml.safe_load((K8S / name).read_bytes()) for name in ("job.yaml", "nightly.yaml"))
    of_night = copy.deepcopy(night["spec"]["jobTemplate"])
    [config] = [entry for entry in pod_of(of_night)["containers"][0]["env"] if entry["name"] == "FINETUNE_CONFIG"]
    config["value"] = pod_of(job)["containers"][0]["env"][0]["value"]
    assert of_night["spec"] == job["spec"]
    assert of_night["metadata"]["labels"] == job["metadata"]["labels"]
    assert of_night["spec"]["activeDeadlineSeconds"] < 24 * 3600, "a stuck night ends before the next"
    assert len(night["metadata"]["name"]) <= 52


def test_promise_59_no_manifest_holds_a_secret(tmp_path: Path) -> None:
    found = objects(build_of(tmp_path, ".", *COMPONENTS)) + objects(build_of(tmp_path, "base", *COMPONENTS))
    assert "Secret" not in {each["kind"] for each in found}
    [job] = [each for each in found if each["kind"] == "Job"]
    keys = [
        entry
        for entry in pod_of(job)["containers"][0]["env"]
        if entry["name"].startswith("AWS_")
        if "KEY" in entry["name"]
    ]
    assert [list(entry["valueFrom"]) for entry in keys] == [["secretKeyRef"]] * 2


@pytest.mark.parametrize("components", [(), ("own-s3", "eks-pod-identity")])
def test_promise_62_the_metadata_address_stays_closed(components: tuple[str, ...], tmp_path: Path) -> None:
    [policy] = [each for each in objects(build_of(tmp_path, "base", *components)) if each["kind"] == "NetworkPolicy"]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy["spec"]
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert len(blocks) >= 2

    def reached(address: str) -> bool:
        at = ipaddress.ip_address(address)
        inside = [
            [at in ipaddress.ip_network(cidr) for cidr in [each["cidr"], *each.get("except", ())]] for each in blocks
        ]
        return any(block and not any(excepted) for block, *excepted in inside)

    assert not reached("169.254.169.254")
    assert not reached("fd00:ec2::254")
    assert reached("52.218.0.1")
    assert reached("169.254.170.23") == ("eks-pod-identity" in components)


# What is refused

WEAKER: dict[str, tuple[str, Callable[[Json, Json], Any]]] = {
    "allowPrivilegeEscalation != false": (
        "allowPrivilegeEscalation is not false",
        lambda pod, box: box["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    "unrestricted capabilities": (
        "capabilities: every container must drop ALL",
        lambda pod, box: box["securityContext"].pop("capabilities"),
    ),
    "runAsNonRoot != true": ("runAsNonRoot is not true", lambda pod, box: pod["securityContext"].pop("runAsNonRoot")),
    "runAsUser=0": ("runAsUser is 0", lambda pod, box: pod["securityContext"].update(runAsUser=0)),
    "seccompProfile": ("seccompProfile is not", lambda pod, box: pod["securityContext"].pop("seccompProfile")),
    "hostNetwork=true": ("hostNetwork is set", lambda pod, box: pod.update(hostNetwork=True)),
    "hostPID=true": ("hostPID is set", lambda pod, box: pod.update(hostPID=True)),
    "hostPath": (
        "a volume is a hostPath",
        lambda pod, box: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    ),
}
"""PodSecurity's words for each weakened copy, those of our policy, and how it is weakened."""


@pytest.mark.parametrize("words", WEAKER)
def test_promise_9_a_weakened_copy_is_refused_as_pod_job_and_cronjob(
    words: str, template: Json, policed: Cluster
) -> None:
    pod = pod_of(template)
    ours, weaken = WEAKER[words]
    weaken(pod, pod["containers"][0])
    with pytest.raises(ConfigError, match=rf'violates PodSecurity "restricted:.*{re.escape(words)}'):
        create_pod(policed, template)
    denied = rf"ValidatingAdmissionPolicy 'finetune-jobs' .* denied request: {ours}"
    with pytest.raises(ConfigError, match=denied):
        policed.create_job(template, dry_run=True)
    with pytest.raises(ConfigError, match=denied):
        policed.apply_cronjob(night_of(template), dry_run=True)


def create_pod(cluster: Cluster, job: Json) -> None:
    """Asks for a pod as the Job's controller would."""
    pod = {"metadata": {"name": "one"}, "spec": pod_of(job)}
    answer = cluster.api.send("POST", f"/api/v1/namespaces/{cluster.namespace}/pods", {"dryRun": "All"}, pod)
    assert (answer.status, answer.warnings) == (201, ())


def test_promise_9_what_ships_is_accepted_as_pod_job_and_cronjob(template: Json, policed: Cluster) -> None:
    create_pod(policed, template)
    assert policed.create_job(template, dry_run=True)
    assert policed.apply_cronjob(night_of(template), dry_run=True)


BARE = {"name": "early", "image": "registry.example.com/early:1"}
REFUSED: dict[str, Callable[[Json, Json], Any]] = {
    "activeDeadlineSeconds is missing": lambda spec, pod: spec.pop("activeDeadlineSeconds"),
    "ttlSecondsAfterFinished is missing": lambda spec, pod: spec.pop("ttlSecondsAfterFinished"),
    "the service account is default, and not": lambda spec, pod: pod.pop("serviceAccountName"),
    "the service account is admin, and not": lambda spec, pod: pod.update(serviceAccountName="admin"),
    "lack the label app.kubernetes.io/component": lambda spec, pod: spec["template"]["metadata"].pop("labels"),
    # An API server without --allow-privileged says it before any policy.
    "(a container is privileged|securityContext.privileged: Forbidden)": lambda spec, pod: pod["containers"][0][
        "securityContext"
    ].update(privileged=True, allowPrivilegeEscalation=True),
    "hostIPC is set": lambda spec, pod: pod.update(hostIPC=True),
    "allowPrivilegeEscalation is not false in every container": lambda spec, pod: pod.update(initContainers=[BARE]),
    "the image elsewhere/early:1 is not from registry.example.com/": lambda spec, pod: pod.update(
        initContainers=[BARE | {"image": "elsewhere/early:1"}]
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_else_the_policy_refuses_is_named(words: str, template: Json, policed: Cluster) -> None:
    REFUSED[words](template["spec"], pod_of(template))
    with pytest.raises(ConfigError, match=words):
        policed.create_job(template, dry_run=True)
    with pytest.raises(ConfigError, match=words):
        policed.apply_cronjob(night_of(template), dry_run=True)


def test_promise_11_a_policys_refusal_is_shown_in_its_own_words(template: Json, policed: Cluster) -> None:
    pod_of(template)["containers"][0]["image"] = "registry.example.com.evil/finetune:1"
    words = "the image registry.example.com.evil/finetune:1 is not from registry.example.com/"
    with pytest.raises(ConfigError, match=words):
        policed.create_job(template, dry_run=True)


def bind(cluster: Cluster, prefix: str | None) -> None:
    """Gives a namespace the policy's label and, unless it is None, an image-prefix."""
    path = f"/api/v1/namespaces/{cluster.namespace}"
    if prefix is not None:
        parameter = {"metadata": {"name": "finetune-job-policy"}, "data": {"image-prefix": prefix}}
        post(cluster, f"{path}/configmaps", parameter)
    label = {"metadata": {"labels": {"finetune.local/job-policy": "enforce"}}}
    assert cluster.api.send("PATCH", path, body=label, content_type="application/merge-patch+json").status == 200


def refusal(cluster: Cluster, job: Json) -> str:
    """The words by which the API server, once it knows of the namespace's label and parameter, refuses a Job."""
    deadline = time.monotonic() + 30
    while True:
        try:
            cluster.create_job(job, dry_run=True)
        except ConfigError as error:
            return error.message
        assert time.monotonic() < deadline, "it was accepted"
        time.sleep(0.3)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (None, "no params found"),
        ("registry.example.com/fine", "end it with / or : or @"),
        ("", "end it with / or : or @"),
        ("registry.example.com/finetune@", "finetune:0.1.0 is not from registry.example.com/finetune@"),
    ],
)
def test_each_namespace_has_its_own_prefix_and_none_without_an_end_counts(
    prefix: str | None, words: str, template: Json, policed: Cluster, cluster: Cluster
) -> None:
    bind(cluster, prefix)
    assert words in refusal(cluster, template)


def test_a_namespace_without_the_label_is_not_touched(template: Json, policed: Cluster, cluster: Cluster) -> None:
    pod_of(template)["containers"][0]["image"] = "elsewhere/finetune:1"
    del template["spec"]["activeDeadlineSeconds"]
    assert cluster.create_job(template, dry_run=True)


def test_a_job_older_than_the_policy_can_still_be_changed_and_removed(
    template: Json, policed: Cluster, cluster: Cluster
) -> None:
    pod_of(template)["containers"][0]["image"] = "elsewhere/finetune:1"
    job = cluster.create_job(template)
    assert job
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    bind(cluster, "registry.example.com/")
    assert "elsewhere" in refusal(cluster, template | {"metadata": {"name": "another"}})
    assert cluster.patch_job(name, uid, {"spec": {"activeDeadlineSeconds": 3600}})
    assert cluster.delete_job(name, uid)
    deadline = time.monotonic() + 60
    while cluster.get_job(name):
        assert time.monotonic() < deadline, "its finalizers are held"
        time.sleep(0.3)


def test_the_policys_expressions_fit_the_types_that_they_are_about(policed: Cluster) -> None:
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/finetune-jobs"
    deadline = time.monotonic() + 30
    while not (status := policed.api.send("GET", path).json().get("status", {})).get("observedGeneration"):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert status["typeChecking"] == {}


# Who may do what

LAUNCHER = {
    ("batch", "jobs"): "create get list watch patch delete",
    ("batch", "cronjobs"): "create get list watch patch delete",
    ("", "pods"): "get list watch",
    ("", "events"): "get list watch",
    ("", "pods/log"): "get",
    ("", "resourcequotas"): "get list",
    ("", "serviceaccounts"): "get",
    ("kueue.x-k8s.io", "localqueues"): "get list",
    ("kueue.x-k8s.io", "workloads"): "get list",
}
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
OTHERS = (
    *[("", name) for name in ("secrets", "configmaps", "services", "persistentvolumeclaims", "replicationcontrollers")],
    *[
        ("", name)
        for name in ("pods/exec", "pods/attach", "pods/portforward", "pods/eviction", "serviceaccounts/token")
    ],
    *[("rbac.authorization.k8s.io", name) for name in ("roles", "rolebindings")],
    *[("apps", name) for name in ("deployments", "daemonsets", "statefulsets")],
    ("networking.k8s.io", "networkpolicies"),
)
CLUSTER_WIDE = (
    *[("", name) for name in ("nodes", "namespaces", "persistentvolumes")],
    *[("rbac.authorization.k8s.io", name) for name in ("clusterroles", "clusterrolebindings")],
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("scheduling.k8s.io", "priorityclasses"),
)


def rights(plane: ControlPlane, account: str) -> set[tuple[str, str, str]]:
    """What an account may do, of all that stands above: group, resource and verb."""
    user = Cluster.connect(
        str(plane.kubeconfig()), namespace=NAMESPACE, user=f"system:serviceaccount:{NAMESPACE}:{account}"
    )
    asked = [(each, True) for each in (*LAUNCHER, *OTHERS)] + [(each, False) for each in CLUSTER_WIDE]
    return {
        (group, resource, verb)
        for (group, resource), namespaced in asked
        for verb in VERBS
        if user.may(verb, resource.partition("/")[0], group, resource.partition("/")[2], namespaced)
    }


def test_promise_60_the_launchers_account_may_what_it_needs_and_nothing_else(
    plane: ControlPlane, policed: Cluster
) -> None:
    allowed = {(*resource, verb) for resource, verbs in LAUNCHER.items() for verb in verbs.split()}
    assert rights(plane, "finetune-launcher") == allowed


def test_promise_60_the_trainers_account_may_nothing(plane: ControlPlane, policed: Cluster) -> None:
    assert rights(plane, "finetune-trainer") == set()
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/finetune-trainer"
    assert policed.api.send("GET", path).json()["automountServiceAccountToken"] is False


def test_promise_60_doctors_role_is_bound_to_nobody_and_works_once_it_is(plane: ControlPlane, policed: Cluster) -> None:
    user = f"ada-{uuid4().hex[:8]}"
    ada = Cluster.connect(str(plane.kubeconfig()), namespace=NAMESPACE, user=user)
    assert not ada.may("list", "nodes", namespaced=False)
    words = ("create", "clusterrolebinding", user, "--clusterrole", "finetune-doctor", "--user", user)
    assert kubectl(*words, plane=plane).returncode == 0
    deadline = time.monotonic() + 30
    while not ada.may("list", "nodes", namespaced=False):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert ada.may("get", "priorityclasses", "scheduling.k8s.io", namespaced=False)
    assert not ada.may("delete", "nodes", namespaced=False)


# The bucket


def aws(name: str) -> Json:
    document: Json = json.loads((K8S / "aws" / f"{name}.json").read_bytes())
    return document


def matches(statement: Json, action: str, key: str) -> bool:
    arn = f"arn:aws:s3:::BUCKET/finetune/{key}"
    actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
    return any(fnmatchcase(action, each) for each in actions) and any(
        fnmatchcase(arn, each) for each in statement["Resource"]
    )


def allows(who: str, action: str, key: str) -> bool:
    return any(matches(statement, action, key) for statement in aws(f"iam-{who}")["Statement"])


RUN = RunKeys("bot-0123456789")
ATTEMPT = RUN.attempt(1)
CONFIG, LATEST, INDEX = config_key(b""), latest_key("bot"), index_key("bot", "20260102T030405Z", RUN.run_id)
PUT_ONCE = [RUN.result, RUN.spec, ATTEMPT.claim]
ARTIFACTS = [f"{ATTEMPT.artifacts(kind)}file" for kind in ("lora", "gguf", "merged", "report")]
OF_A_START = [RUN.canary("uuid"), RUN.config, RUN.spec, ATTEMPT.claim, RUN.lease, ATTEMPT.log(1)]
OF_AN_END = [*ARTIFACTS, ATTEMPT.published, ATTEMPT.outcome, RUN.result, INDEX, LATEST]
EVERY_KEY = [CONFIG, *OF_A_START, *OF_AN_END, RUN.cancelled, f"{ATTEMPT.prefix}checkpoints/step-000500/complete.json"]


def test_promise_60_each_role_reaches_its_keys_and_no_others() -> None:
    def reached(who: str, action: str) -> set[str]:
        return {key for key in EVERY_KEY if allows(who, action, key)}

    assert reached("trainer", "s3:GetObject") == set(EVERY_KEY)
    assert reached("trainer", "s3:PutObject") == set(EVERY_KEY) - {CONFIG}
    assert reached("launcher", "s3:GetObject") == set(EVERY_KEY)
    assert reached("launcher", "s3:PutObject") == {CONFIG, RUN.config, RUN.spec, RUN.cancelled}
    hidden = {CONFIG, RUN.canary("uuid"), ATTEMPT.log(1), EVERY_KEY[-1]}
    assert reached("reader", "s3:GetObject") == set(EVERY_KEY) - hidden
    assert reached("reader", "s3:PutObject") == set()


def test_promise_60_nobody_may_delete_or_everything() -> None:
    statements = [each for who in ("trainer", "launcher", "reader") for each in aws(f"iam-{who}")["Statement"]]
    assert {each["Effect"] for each in statements} == {"Allow"}
    actions = {action for each in statements for action in each["Action"]}
    assert [action for action in actions if "*" in action or "Delete" in action] == []


def test_what_is_put_once_cannot_be_put_otherwise() -> None:
    _, deny = aws("bucket-policy")["Statement"]
    assert (deny["Effect"], deny["Condition"]) == ("Deny", {"Null": {"s3:if-none-match": "true"}})
    assert {key for key in EVERY_KEY if matches(deny, "s3:PutObject", key)} == set(PUT_ONCE)


def test_the_lifecycle_rules_are_taken(s3: "S3Client") -> None:
    bucket = f"lifecycle-{uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    rules = aws("lifecycle")
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=cast(Any, rules))
    taken = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]

    def by_id(rule: Any) -> str:
        return str(rule["ID"])

    assert sorted(taken, key=by_id) == sorted(rules["Rules"], key=by_id)


def test_a_canary_is_known_by_its_size(storage: Storage) -> None:
    [rule] = [each["Filter"]["And"] for each in aws("lifecycle")["Rules"] if each["ID"] == "canaries"]
    size = probe(storage, RUN.canary(uuid4().hex)).size
    assert rule["ObjectSizeGreaterThan"] < size < rule["ObjectSizeLessThan"] <= 2
    assert f"finetune/{RUN.canary('')}".startswith(rule["Prefix"])


# The alerts


def test_each_alert_says_what_to_look_at_and_asks_for_the_namespace() -> None:
    rule = yaml.safe_load((K8S / "alerts.yaml").read_bytes())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    alerts = {each["alert"]: each for group in rule["spec"]["groups"] for each in group["rules"]}
    assert {"FinetuneNightFailed", "FinetuneNightMissing", "FinetuneRunPending"} == set(alerts)
    for alert in alerts.values():
        metrics = re.findall(r"(kube_\w+)\{namespace=\"(\w+)\"", alert["expr"])
        assert len(metrics) == alert["expr"].count("kube_") > 0
        assert {namespace for _, namespace in metrics} == {NAMESPACE}
        assert alert["expr"].count("(") == alert["expr"].count(")")
        assert set(alert["annotations"]) == {"summary", "description"}
    assert "kube_cronjob_status_last_successful_time" in alerts["FinetuneNightMissing"]["expr"]
