"""Runs that a real node interrupts: each goes on from a checkpoint, and ends in one result."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from examples.cluster.control_plane import NODE
from examples.cluster.node import Node
from job.contract.exits import Exit
from job.storage.opening import open_storage
from launcher.deciding import RunFailed
from launcher.manifest import trainer
from launcher.status import Phase
from tests.cluster.conftest import SECONDS, post, post_urgent_pod, until
from tests.cluster.node.attempts import attempts, kept
from tests.cluster.node.conftest import TRAINING, Bench
from tests.cluster.node.interrupted import assert_stopped_and_resumed, ends_whole, living_pods, trains


def test_an_eviction(bench: Bench, uninterrupted: str) -> None:
    launcher, run = trains(bench)
    [pod] = living_pods(bench, run)
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    with nowhere_to_go(bench):
        post(bench.cluster, f"/api/v1/namespaces/{bench.cluster.namespace}/pods/{pod}/eviction", body)
        until(lambda: launcher.status(run).phase == Phase.RECOVERING)
    assert_stopped_and_resumed(ends_whole(bench, launcher, run, uninterrupted))


def test_a_preemption_by_a_pod_of_higher_priority(bench: Bench, uninterrupted: str) -> None:
    launcher, run = trains(bench)
    with urgent_pod(bench):
        until(lambda: launcher.status(run).phase == Phase.RECOVERING)
        assert [attempt.code for attempt in attempts(open_storage(bench.root), run)] == [Exit.INTERRUPTED]
    assert_stopped_and_resumed(ends_whole(bench, launcher, run, uninterrupted))


def test_more_deleted_pods_than_failures_are_allowed(bench: Bench, uninterrupted: str) -> None:
    launcher, run = trains(bench)
    with nowhere_to_go(bench):
        bench.kubectl("delete", "pod", "--wait=false", *living_pods(bench, run))
        until(lambda: launcher.status(run).phase == Phase.RECOVERING)
    until(lambda: kept(open_storage(bench.root), run, 2))
    bench.kubectl("delete", "pod", *living_pods(bench, run))
    assert_stopped_and_resumed(ends_whole(bench, launcher, run, uninterrupted, attempt=3))


def test_suspended_and_resumed(bench: Bench, uninterrupted: str) -> None:
    launcher, run = trains(bench)
    bench.kubectl("patch", "job", run, "-p", '{"spec": {"suspend": true}}')
    until(lambda: attempts(open_storage(bench.root), run)[0].code)
    assert launcher.status(run).phase == Phase.QUEUED
    with nowhere_to_go(bench):
        bench.kubectl("patch", "job", run, "-p", '{"spec": {"suspend": false}}')
        until(lambda: launcher.status(run).phase == Phase.RECOVERING)
    assert_stopped_and_resumed(ends_whole(bench, launcher, run, uninterrupted))


def test_a_deadline_and_launch_resume(bench: Bench, uninterrupted: str) -> None:
    launcher, run = trains(bench)
    bench.kubectl("patch", "job", run, "-p", '{"spec": {"activeDeadlineSeconds": 1}}')
    failed = launcher.wait(run, timeout=SECONDS)
    assert (failed.phase, failed.reason) == (Phase.FAILED, "DeadlineExceeded")
    again = launcher.launch(bench.directory / "bot.yaml", resume=True)
    assert (again.run_id, again.created) == (run, True)
    assert_stopped_and_resumed(ends_whole(bench, launcher, run, uninterrupted))


def test_a_failure_and_launch_resume_with_more_memory(bench: Bench, uninterrupted: str) -> None:
    launcher = bench.launcher()
    training = TRAINING | {"save_steps": 1}
    run = launcher.launch(bench.config("exit 79", training=training)).run_id
    failed = launcher.wait(run, timeout=SECONDS)
    assert (failed.phase, failed.exit_code) == (Phase.FAILED, Exit.GPU_OOM)
    more = bench.config("exit 79", training=training, compute={"memory_gib": 0.75})
    with pytest.raises(RunFailed, match="Failed"):
        launcher.launch(more)
    assert launcher.launch(more, resume=True).run_id == run, "memory decides no weights"
    [first, second] = ends_whole(bench, launcher, run, uninterrupted)
    assert (first.code, first.kept, second.code, second.told("resumed")) == (Exit.GPU_OOM, [1], Exit.OK, [1])
    [pod] = bench.pods(run)
    assert trainer({"spec": {"template": pod}})["resources"]["limits"]["memory"] == "768Mi"


def test_a_drained_node(bench: Bench, node: Node, uninterrupted: str) -> None:
    launcher, run = trains(bench)
    selector = f"--pod-selector=batch.kubernetes.io/job-name={run}"
    bench.kubectl("drain", NODE, "--delete-emptydir-data", selector, "--timeout=60s")
    until(lambda: launcher.status(run).phase == Phase.RECOVERING)
    bench.kubectl("uncordon", NODE)
    assert_stopped_and_resumed(ends_whole(bench, launcher, run, uninterrupted))


@contextmanager
def nowhere_to_go(bench: Bench) -> Iterator[None]:
    """The node takes no new pod in the block: what is true between two attempts stays so."""
    try:
        bench.kubectl("cordon", NODE)
        yield
    finally:
        bench.kubectl("uncordon", NODE)


@contextmanager
def urgent_pod(bench: Bench) -> Iterator[None]:
    """A pod that needs all of the node, and is more important than any."""
    name = f"urgent-{uuid4().hex[:8]}"
    [whole] = [node["status"]["allocatable"]["cpu"] for node in bench.cluster.nodes()]
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "urgent",
        "image": "localhost/pause:1",
        "resources": {"requests": {"cpu": whole}},
        "securityContext": restricted,
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    try:
        post_urgent_pod(bench.cluster, name, spec)
        yield
        bench.kubectl("delete", "pod", name)
    finally:
        bench.kubectl("delete", "priorityclass", name, "--ignore-not-found")
