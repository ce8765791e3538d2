"""What doctor concludes, from plain objects of Kubernetes."""

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
import yaml

from job.contract.errors import ConfigError, JobError, UsageError
from job.storage import Storage
from launcher.doctor import NEEDED, Check, code_of, grace_for
from launcher.gpu_nodes import gpu_nodes, obstacles, quota, tolerates
from launcher.library import Launcher
from launcher.manifest import Manifest, trainer
from launcher.pending import waits, waits_since
from tests.conftest import ROOT

Json = dict[str, Any]
GPU = "nvidia.com/gpu"
SHIPPED = ROOT / "k8s" / "job.yaml"


def node(name: str, gpus: int | None = None, labels: Json | None = None, **spec: Any) -> Json:
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": spec,
        "status": {"allocatable": {"cpu": "8"} | ({} if gpus is None else {GPU: str(gpus)})},
    }


def taint(key: str, value: str = "", effect: str = "NoSchedule") -> dict[str, str]:
    return {"key": key, "effect": effect} | ({"value": value} if value else {})


# The exit code


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((), 0), ((78,), 78), ((74,), 78), ((69, 78), 69), ((78, 69, 77), 77), ((77, 64), 64)],
)
def test_the_exit_code_is_of_the_worst_failure(codes: tuple[int, ...], expected: int) -> None:
    failed = [Check(name=str(code), ok=False, message="", code=code) for code in codes]
    harmless = [Check(name="fine", ok=True, message=""), Check(name="note", ok=None, message="")]
    assert code_of([*harmless, *failed]) == expected


def test_a_cluster_that_is_not_named_hides_no_check_of_the_store(storage: Storage) -> None:
    checks = {check.name: check for check in Launcher(storage.uri, SHIPPED, kubeconfig="/nowhere").doctor()}
    assert (checks["cluster"].code, "/nowhere" in checks["cluster"].message) == (64, True)
    assert (checks["rights"].ok, checks["store"].ok) == (None, True)


def test_the_template_that_ships_names_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNE_RUNS", raising=False)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    launcher = Launcher(template=SHIPPED)
    with pytest.raises(UsageError, match="no root of runs"):
        launcher.list()
    assert {check.name: check.code for check in launcher.doctor()}["store"] == 64


# Taints


MATCHES = [
    ({"operator": "Exists"}, True),
    ({"key": "team", "operator": "Exists"}, True),
    ({"key": "team", "operator": "Exists", "effect": "NoSchedule"}, True),
    ({"key": "team", "operator": "Exists", "effect": "NoExecute"}, False),
    ({"key": "other", "operator": "Exists"}, False),
    ({"key": "team", "operator": "Equal", "value": "infer"}, True),
    ({"key": "team", "value": "infer"}, True),
    ({"key": "team", "value": "train"}, False),
    ({"key": "team"}, False),
]


@pytest.mark.parametrize(("toleration", "matches"), MATCHES)
def test_a_toleration_matches_as_the_scheduler_has_it(toleration: dict[str, str], matches: bool) -> None:
    assert tolerates(toleration, taint("team", "infer")) is matches


def test_what_keeps_the_pod_off_a_node_is_named(template: Manifest) -> None:
    template["spec"]["template"]["spec"]["nodeSelector"] = {"pool": "gpu"}
    ours = taint(GPU, "present")
    assert (
        obstacles(node("free", 8, {"pool": "gpu"}, taints=[ours, taint("old", "", "PreferNoSchedule")]), template) == []
    )
    closed = node("closed", 8, {"pool": "web"}, unschedulable=True, taints=[ours, taint("team", "infer", "NoExecute")])
    assert obstacles(closed, template) == ["cordoned", "taint team=infer:NoExecute", "not pool=gpu"]


# GPU nodes


def test_gpus_are_counted_where_the_pod_may_go(template: Manifest) -> None:
    nodes = [node("plain"), node("a", 8), node("b", 4), node("c", 2, taints=[taint("team", "infer")])]
    told = gpu_nodes(template, nodes)
    assert told.startswith(f"12 {GPU} on 2 nodes, at most 8 on one; ")
    assert "c (taint team=infer:NoSchedule)" in told
    assert "a (" not in told


def test_nodes_that_are_too_small_are_a_failure(template: Manifest) -> None:
    trainer(template)["resources"]["limits"][GPU] = 4
    with pytest.raises(ConfigError, match=f"4 {GPU}: at most 2 on one"):
        gpu_nodes(template, [node("a", 2), node("b", 1)])


def test_a_node_whose_device_plugin_has_died_has_none(template: Manifest) -> None:
    with pytest.raises(ConfigError, match="at most 0 on one"):
        gpu_nodes(template, [node("a", 0)])


def test_nodes_that_are_all_tainted_are_a_failure(template: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"a \(taint team=:NoSchedule\)"):
        gpu_nodes(template, [node("a", 8, taints=[taint("team")])])


def test_no_gpu_node_is_a_note_for_an_autoscaler_may_add_one(template: Manifest) -> None:
    with pytest.raises(JobError, match=f"no node has {GPU}") as raised:
        gpu_nodes(template, [node("a")])
    assert not isinstance(raised.value, ConfigError)


def test_the_resource_is_the_templates(template: Manifest) -> None:
    limits = trainer(template)["resources"]["limits"]
    del limits[GPU]
    with pytest.raises(JobError, match="asks for no GPU"):
        gpu_nodes(template, [node("a", 8)])
    limits["nvidia.com/mig-3g.40gb"] = 1
    with pytest.raises(JobError, match=r"no node has nvidia.com/mig-3g.40gb"):
        gpu_nodes(template, [node("a", 8)])


def test_a_thousand_nodes_are_not_all_named(template: Manifest) -> None:
    told = gpu_nodes(template, [node("a", 8), *(node(f"n{i}", 8, unschedulable=True) for i in range(1000))])
    assert told.endswith("and 992 more")


# Quota


def limit(**hard: str) -> Json:
    return {"metadata": {"name": "team"}, "spec": {"hard": hard}, "status": {"used": {"requests.nvidia.com/gpu": "3"}}}


def test_a_quota_of_gpus_is_shown(template: Manifest) -> None:
    assert quota(template, [limit(cpu="10"), limit(**{f"requests.{GPU}": "4"})]).startswith(f"3 of 4 {GPU} are used")
    assert quota(template, [limit(cpu="10")]) == f"no quota limits {GPU}"


def test_a_quota_below_the_template_is_a_failure(template: Manifest) -> None:
    with pytest.raises(ConfigError, match=f"the quota team allows 0 {GPU}"):
        quota(template, [limit(**{f"requests.{GPU}": "0"})])


# Grace


def test_a_fast_store_fits_the_grace_period() -> None:
    told = grace_for(50.4e6, 120)
    assert "50.4 MB/s" in told
    assert "504 MB" in told
    assert "takes 10 s" in told
    assert "a grace period of 45 s" in told


def test_a_slow_store_says_the_grace_period_it_needs() -> None:
    with pytest.raises(JobError, match="not from a pod") as raised:
        grace_for(5.04e6, 120)
    assert "terminationGracePeriodSeconds to 135" in raised.value.resolution
    assert not isinstance(raised.value, ConfigError), "a pod may be faster"


# Pending


CREATED, STARTED = "2026-03-01T08:00:00Z", "2026-03-01T09:00:00Z"


def job(status: Json | None = None, **spec: Any) -> Json:
    return {"metadata": {"name": "bot", "creationTimestamp": CREATED}, "spec": spec, "status": status or {}}


def at(hour: int) -> datetime:
    return datetime(2026, 3, 1, hour, tzinfo=UTC)


def test_a_job_waits_unless_it_runs_is_stopped_or_has_ended() -> None:
    assert waits(job({"active": 1, "ready": 0}))
    assert waits(job())
    assert not waits(job({"active": 1, "ready": 1}))
    assert not waits(job(suspend=True))
    assert not waits(job({"conditions": [{"type": "Failed", "status": "True"}]}))


def test_it_waits_since_its_pod_was_made_else_since_it_was_started() -> None:
    assert waits_since(job(), None) == at(8)
    assert waits_since(job({"startTime": STARTED}), None) == at(9), "it was queued before"
    assert waits_since(job({"startTime": STARTED, "active": 1}), at(10)) == at(10)
    assert waits_since(job({"startTime": STARTED, "active": 1, "failed": 1}), at(10)) == at(10)
    assert waits_since(job({"startTime": STARTED, "failed": 1}), None) is None, "it pauses between attempts"
    assert waits_since(job({"startTime": STARTED, "active": 1}), None) is None, "its pod runs, and is not ready"


# Rights


GRANTED_BEYOND = {
    # `doctor` looks whether they are there, and goes on where it may not.
    ("", "resourcequotas"): {"get", "list"},
    ("", "serviceaccounts"): {"get"},
    ("kueue.x-k8s.io", "localqueues"): {"get", "list"},
    # `why` does without Kueue's own words.
    ("kueue.x-k8s.io", "workloads"): {"get", "list"},
    # For kubectl, to which our texts point: `describe`, and `get --watch`.
    ("", "pods"): {"get", "watch"},
    ("", "events"): {"get", "watch"},
    # With the Jobs, in one rule.
    ("batch", "cronjobs"): {"watch"},
}
"""What the Role that ships grants though no command needs it, by group and resource."""


def test_the_role_that_ships_grants_what_the_commands_need_and_what_differs_on_purpose() -> None:
    manifests = yaml.safe_load_all((ROOT / "k8s" / "base" / "rbac.yaml").read_bytes())
    [role] = [each for each in manifests if (each["kind"], each["metadata"]["name"]) == ("Role", "finetune-launcher")]
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group, resource, verb in product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }
    needed = {(right.group, right.resource, right.verb) for right in NEEDED}
    beyond = {(*resource, verb) for resource, verbs in GRANTED_BEYOND.items() for verb in verbs}
    assert granted - needed == beyond
    assert needed - granted == set()


def test_each_right_is_named_once() -> None:
    names = [str(right) for right in NEEDED]
    assert len(set(names)) == len(names)
    assert {"create jobs.batch", "get pods/log", "delete cronjobs.batch"} <= set(names)
