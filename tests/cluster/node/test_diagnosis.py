"""What only a kubelet can tell of a run that does not go on: recorded anew with FINETUNE_RECORD=1."""

import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from job.contract.exits import Exit
from job.storage import Storage
from job.storage.opening import open_storage
from launcher.categories import Category
from launcher.kube import Json
from launcher.manifest import Manifest, set_env, trainer
from tests.cluster.node.conftest import Bench, Change
from tests.cluster.recording import recorded


def nothing(_: Manifest) -> None:
    """Leaves the template as it is."""


def image(name: str) -> Change:
    return lambda template: trainer(template).update(image=name)


def command(*words: str) -> Change:
    return lambda template: trainer(template).update(command=list(words))


def secret(template: Manifest) -> None:
    trainer(template)["envFrom"] = [{"secretRef": {"name": "nobody-made-it"}}]


def unreachable_store(template: Manifest) -> None:
    set_env(trainer(template), "AWS_ENDPOINT_URL_S3", "http://10.244.0.1:1")
    set_env(trainer(template), "FINETUNE_S3_BUDGET_SECONDS", "2")


def straight_to_the_node(template: Manifest) -> None:
    template["spec"]["template"]["spec"]["nodeName"] = "node1"


CANNOT_START: list[tuple[Category, str, Change]] = [
    (Category.IMAGE_PULL, "", image("localhost/nobody-has-it:1")),
    (Category.IMAGE_PULL, "invalid", image("Not An Image")),
    (Category.CONTAINER_CANNOT_START, "", secret),
    (Category.CONTAINER_CANNOT_START, "create", command("/nowhere")),
    (Category.BROKEN_IMAGE, "", command("/usr/bin/python3", "-c", "raise SystemExit(1)")),
    (Category.COMPLETE_WITHOUT_RESULT, "", command("/bin/true")),
    (Category.S3_UNAVAILABLE, "", unreachable_store),
]


@pytest.mark.parametrize(("category", "variant", "change"), CANNOT_START)
def test_promise_18_a_pod_that_cannot_start(category: Category, variant: str, change: Change, bench: Bench) -> None:
    run = bench.launcher(change).launch(bench.config()).run_id
    found = recorded(category, bench.cluster, run, root(bench), variant)
    assert found.resolution


CODES = [
    (Category.BUG, Exit.BUG),
    (Category.DEVICE, Exit.DEVICE),
    (Category.IO, Exit.IO),
    (Category.GPU_OOM, Exit.GPU_OOM),
    (Category.DATA, Exit.DATA),
    (Category.NO_PERMISSION, Exit.NO_PERMISSION),
    (Category.CONFIG, Exit.CONFIG),
    (Category.FENCED, Exit.FENCED),
    (Category.INTERRUPTED, Exit.INTERRUPTED),
    (Category.NO_INPUT, Exit.NO_INPUT),
    (Category.TAKEN, Exit.TAKEN),
]


def test_each_exit_code_of_the_table_is_told_in_the_jobs_words(bench: Bench) -> None:
    launcher = bench.launcher()
    runs = {
        category: launcher.launch(bench.config(f"exit {int(code)}", name=f"bot-{int(code)}")).run_id
        for category, code in CODES
    }
    for category, run in runs.items():
        found = recorded(category, bench.cluster, run, root(bench))
        assert "the stand-in was told to end" in found.said
        assert found.by == "job"


def test_a_process_that_was_killed(bench: Bench) -> None:
    run = bench.launcher().launch(bench.config("signal 9")).run_id
    recorded(Category.CHILD_OUT_OF_MEMORY, bench.cluster, run, root(bench), "told")


def test_a_process_that_took_too_much_memory(bench: Bench) -> None:
    run = bench.launcher().launch(bench.config("allocate", compute={"memory_gib": 0.4})).run_id
    found = recorded(Category.CHILD_OUT_OF_MEMORY, bench.cluster, run, root(bench))
    assert "compute.memory_gib" in found.resolution


def test_a_container_that_took_too_much_memory(bench: Bench) -> None:
    hog = command("/usr/bin/python3", "-c", "held = [bytes(range(256)) * 2**16 for _ in range(10**6)]")
    run = bench.launcher(hog).launch(bench.config(compute={"memory_gib": 0.2})).run_id
    found = recorded(Category.OUT_OF_MEMORY, bench.cluster, run, root(bench))
    assert "compute.memory_gib" in found.resolution


def test_a_pod_that_filled_its_scratch_is_evicted(bench: Bench) -> None:
    config = bench.config("fill 200", "seconds 2", training={"max_steps": 60}, compute={"scratch_gib": 0.1})
    run = bench.launcher().launch(config).run_id
    recorded(Category.EVICTED, bench.cluster, run, root(bench))


def test_promise_19_a_pod_that_the_kubelet_refuses(bench: Bench) -> None:
    launcher = bench.launcher(straight_to_the_node)
    run = launcher.launch(bench.config(compute={"gpus": 2, "gpu_memory_gib": 15})).run_id
    found = recorded(Category.KUBELET_REFUSED, bench.cluster, run, root(bench))
    assert "nvidia.com/gpu" in found.said


def test_a_run_that_outlasts_its_deadline(bench: Bench) -> None:
    run = bench.launcher().launch(bench.config("seconds 60", compute={"max_hours": 0.003})).run_id
    recorded(Category.DEADLINE_EXCEEDED, bench.cluster, run, root(bench), "running")


def test_a_pod_that_is_drained(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config("seconds 60")).run_id
    wait_for(lambda: launcher.status(run).stage == "train")
    [pod] = pods(bench, run)
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{bench.cluster.namespace}/pods/{name}/eviction"
    bench.cluster.api.send("POST", path, body=eviction)
    recorded(Category.DISRUPTED, bench.cluster, run, root(bench), "drained")


def test_a_run_that_gives_no_sign_of_life(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config("seconds 60")).run_id
    wait_for(lambda: launcher.status(run).stage == "train")
    recorded(Category.SILENT, bench.cluster, run, root(bench), later=timedelta(minutes=5))


def test_promise_17_a_bad_image_ends_within_the_start_timeout(bench: Bench) -> None:
    launcher = bench.launcher(image("localhost/nobody-has-it:1"))
    run = launcher.launch(bench.config()).run_id
    ended = launcher.wait(run, timeout=60, start_timeout=3)
    assert ended.phase == "Failed"
    found = launcher.why(run)
    assert found
    assert found.category in (Category.IMAGE_PULL, Category.DEADLINE_EXCEEDED)
    assert "no pod of it ran within 3 s" in ended.message


def root(bench: Bench) -> Storage:
    return open_storage(bench.root)


def pods(bench: Bench, run: str) -> list[Json]:
    job = bench.cluster.get_job(run)
    assert job
    return bench.cluster.pods(job["metadata"]["uid"])


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)
