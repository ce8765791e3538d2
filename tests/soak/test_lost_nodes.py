"""Runs whose node is lost, with and without its return: what still trains there spoils nothing."""

from examples.cluster.control_plane import NODE
from examples.cluster.node import Node
from job.contract.exits import Exit
from job.storage.opening import open_storage
from launcher.status import Phase
from tests.cluster.conftest import until
from tests.cluster.node.attempts import assert_whole, attempts
from tests.cluster.node.conftest import TRAINING, Bench
from tests.cluster.node.interrupted import condition, ends_whole, living_pods, trains
from tests.soak.conftest import Elsewhere

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
ENDINGS = (Exit.INTERRUPTED, Exit.FENCED, Exit.IO, None)
"""Of an attempt whose pod Kubernetes has forgotten: told to stop, overtaken, without its volumes, or killed before it could
tell."""


def test_a_pod_that_was_deleted_by_force_and_trains_on(bench: Bench, node: Node, uninterrupted: str) -> None:
    launcher, run = trains(bench, seconds=1)
    [forgotten] = living_pods(bench, run)
    node.kill_kubelet()
    bench.kubectl("delete", "pod", forgotten, "--force", "--grace-period=0", "--wait=false")
    bench.kubectl("patch", "pod", forgotten, "-p", '{"metadata": {"finalizers": null}}')
    until(lambda: set(living_pods(bench, run)) - {forgotten})
    wait_until_it_trains_on(bench, run)
    node.return_kubelet()
    [first, _] = ends_whole(bench, launcher, run, uninterrupted)
    assert first.code in ENDINGS, first.log[-5:]


def test_a_node_that_comes_back(bench: Bench, node: Node, uninterrupted: str) -> None:
    launcher, run = trains(bench, seconds=1.5)
    lose(bench, node)
    wait_until_it_trains_on(bench, run)
    node.return_kubelet()
    ends_whole(bench, launcher, run, uninterrupted, attempt=1)


def test_a_node_that_is_given_up_and_comes_back(bench: Bench, node: Node, uninterrupted: str) -> None:
    launcher, run = trains(bench, seconds=2)
    forgotten = living_pods(bench, run)
    lose(bench, node)
    bench.kubectl("taint", "node", NODE, f"{OUT_OF_SERVICE}=nodeshutdown:NoExecute")
    until(lambda: living_pods(bench, run) != forgotten)
    wait_until_it_trains_on(bench, run)
    assert launcher.status(run).phase == Phase.RECOVERING
    bench.kubectl("taint", "node", NODE, f"{OUT_OF_SERVICE}-")
    node.return_kubelet()
    [first, _] = ends_whole(bench, launcher, run, uninterrupted)
    assert first.code in ENDINGS, first.log[-5:]


def test_a_pod_that_is_overtaken_on_a_lost_node(
    bench: Bench, node: Node, elsewhere: Elsewhere, uninterrupted: str
) -> None:
    """It trains on where nobody can tell it to stop, until the store tells it of its successor."""
    launcher, run = trains(bench, seconds=1.5)
    node.kill_kubelet()
    assert elsewhere(bench, run).start().code == Exit.OK
    until(lambda: attempts(open_storage(bench.root), run)[0].code)
    found = assert_whole(open_storage(bench.root), run, uninterrupted)
    assert [attempt.code for attempt in found] == [Exit.FENCED, Exit.OK]
    node.return_kubelet()
    until(lambda: condition(bench, run, "Complete"))
    job = bench.cluster.get_job(run)
    assert job
    assert job["status"]["failed"] == 1, "a 76 is tried again, and counted"
    assert launcher.status(run).phase == Phase.SUCCEEDED
    assert len(attempts(open_storage(bench.root), run)) == 2, "the pod that Kubernetes made found the result"


def lose(bench: Bench, node: Node) -> None:
    """Returns when the control plane has missed the node."""
    node.kill_kubelet()
    bench.kubectl("wait", "--for=condition=Ready=Unknown", f"node/{NODE}", "--timeout=90s")


def wait_until_it_trains_on(bench: Bench, run: str) -> None:
    """Returns when the first attempt has told the store of a further step."""

    def step() -> int:
        return attempts(open_storage(bench.root), run)[0].told("step")[-1]

    taken = step()
    assert taken < TRAINING["max_steps"]
    until(lambda: step() > taken)
