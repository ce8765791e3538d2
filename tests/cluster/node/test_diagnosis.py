"""What only a kubelet can tell of a run that does not go on: recorded anew with FINETUNE_RECORD=1."""

import json
from datetime import timedelta

import pytest

from job.contract.exits import Exit
from job.storage import Storage
from job.storage.opening import open_storage
from launcher.categories import Category
from launcher.kube import Json
from launcher.manifest import Manifest, set_env, trainer
from tests.cluster.conftest import SECONDS, until
from tests.cluster.node.conftest import Bench, Change
from tests.cluster.recording import recorded


def image(name: str) -> Change:
    return lambda template: trainer(template).update(image=name)


def command(*words: str) -> Change:
    return lambda template: trainer(template).update(command=list(words))


def secret(template: Manifest) -> None:
    trainer(template)["envFrom"] = [{"secretRef": {"name": "nobody-made-it"}}]


def unreachable_store(template: Manifest) -> None:
    set_env(trainer(template), "AWS_ENDPOINT_URL_S3", "http://10.244.0.1:1")
    set_env(trainer(template), "FINETUNE_S3_BUDGET_SECONDS", "2")


def never_pulled(template: Manifest) -> None:
    trainer(template).update(image="localhost/nobody-has-it:1", imagePullPolicy="Never")


def volume(template: Manifest) -> None:
    template["spec"]["template"]["spec"]["volumes"].append({"name": "ca", "configMap": {"name": "nobody-made-it"}})
    trainer(template)["volumeMounts"].append({"name": "ca", "mountPath": "/ca"})


def flag(template: Manifest) -> None:
    trainer(template)["args"] = ["--no-such-flag"]


def python(code: str, *options: str) -> Change:
    return command("/usr/bin/python3", *options, "-c", code)


def no_other_attempt(template: Manifest) -> None:
    template["spec"]["backoffLimit"] = 0


SEGFAULT = python("import ctypes; ctypes.string_at(0)", "-X", "faulthandler")

CANNOT_START: list[tuple[str, Change, str]] = [
    ("image_pull-invalid", image("Not An Image"), "InvalidImageName"),
    ("image_pull-never", never_pulled, "ErrImageNeverPull"),
    ("container_cannot_start", secret, "CreateContainerConfigError"),
    ("container_cannot_start-command", command("/nowhere"), "StartError"),
    ("container_cannot_start-mount", volume, "ContainerCreating"),
    ("broken_image", python("raise SystemExit(1)"), "Error"),
    ("broken_image-python", command("/usr/bin/python3", "-m", "nowhere"), "Error"),
    ("usage", flag, "Error"),
    ("complete_without_result", command("/bin/true"), "Completed"),
    ("killed", SEGFAULT, "Error"),
    ("s3_unavailable", unreachable_store, "Error"),
]


@pytest.mark.parametrize(("name", "change", "state"), CANNOT_START)
def test_promise_18_a_pod_that_cannot_start(name: str, change: Change, state: str, bench: Bench) -> None:
    """And the kubelet has told so in the container's state, not in an event alone."""
    run = bench.launcher(change).launch(bench.config()).run_id
    until(lambda: f'"reason": "{state}"' in json.dumps(bench.pods(run)))
    assert recorded(name, bench.cluster, run, root(bench)).resolution


def test_an_image_that_cannot_be_pulled(bench: Bench) -> None:
    """While it is tried, while the kubelet pauses, and when the deadline is over and the pod has gone."""
    run = bench.launcher(image("localhost/nobody-has-it:1")).launch(bench.config()).run_id
    recorded("image_pull", bench.cluster, run, root(bench), words="says: “failed to pull")
    recorded("image_pull-backoff", bench.cluster, run, root(bench), words="says: “Back-off pulling")
    end(bench, run)
    recorded("image_pull-ended", bench.cluster, run, root(bench), words="`launch --resume`")


CODES = {
    "bug": Exit.BUG,
    "device": Exit.DEVICE,
    "io": Exit.IO,
    "gpu_oom": Exit.GPU_OOM,
    "data": Exit.DATA,
    "no_permission": Exit.NO_PERMISSION,
    "config": Exit.CONFIG,
    "fenced": Exit.FENCED,
    "interrupted": Exit.INTERRUPTED,
    "no_input": Exit.NO_INPUT,
    "taken": Exit.TAKEN,
}


def test_each_exit_code_of_the_table_is_told_in_the_jobs_words(bench: Bench) -> None:
    launcher = bench.launcher()
    runs = {
        name: launcher.launch(bench.config(f"exit {int(code)}", name=f"bot-{int(code)}")).run_id
        for name, code in CODES.items()
    }
    for name, run in runs.items():
        found = recorded(name, bench.cluster, run, root(bench))
        assert "the stand-in was told to end" in found.said
        assert found.by == "job"


GONE: list[tuple[str, Change, str]] = [
    ("config-policy", python("raise SystemExit(78)"), "failed with exit code 78"),
    ("job_failed", SEGFAULT, "backoff limit"),
    ("device-store", lambda _: None, "the stand-in was told to end"),
]


@pytest.mark.parametrize(("name", "change", "said"), GONE)
def test_a_job_that_failed_and_whose_pod_has_gone(name: str, change: Change, said: str, bench: Bench) -> None:
    def once(template: Manifest) -> None:
        no_other_attempt(template)
        change(template)

    launcher = bench.launcher(once)
    run = launcher.launch(bench.config("exit 71")).run_id
    until(lambda: launcher.status(run).phase == "Failed")
    for pod in bench.pods(run):
        path = f"/api/v1/namespaces/{bench.cluster.namespace}/pods/{pod['metadata']['name']}"
        bench.cluster.api.send("DELETE", path)
    until(lambda: not bench.pods(run))
    assert said in recorded(name, bench.cluster, run, root(bench)).said


def test_a_process_that_was_killed(bench: Bench) -> None:
    run = bench.launcher().launch(bench.config("signal 9")).run_id
    assert "not by the kernel for memory" in recorded("killed-child", bench.cluster, run, root(bench)).said


def test_a_process_that_met_a_segmentation_fault(bench: Bench) -> None:
    run = bench.launcher().launch(bench.config("signal 11")).run_id
    assert "SIGSEGV" in recorded("killed-told", bench.cluster, run, root(bench)).said


def test_a_process_that_took_too_much_memory(bench: Bench) -> None:
    run = bench.launcher().launch(bench.config("allocate", compute={"memory_gib": 0.4})).run_id
    found = recorded("child_out_of_memory", bench.cluster, run, root(bench))
    assert "compute.memory_gib" in found.resolution


def test_a_container_that_took_too_much_memory(bench: Bench) -> None:
    hog = python("held = [bytes(range(256)) * 2**16 for _ in range(10**6)]")
    run = bench.launcher(hog).launch(bench.config(compute={"memory_gib": 0.2})).run_id
    found = recorded("out_of_memory", bench.cluster, run, root(bench))
    assert "compute.memory_gib" in found.resolution


def test_a_pod_that_filled_its_scratch_is_evicted(bench: Bench) -> None:
    config = bench.config("fill 200", "seconds 2", training={"max_steps": 60}, compute={"scratch_gib": 0.1})
    run = bench.launcher().launch(config, freeze_in_pod=True).run_id  # who freezes it here refuses so small a scratch
    recorded("evicted", bench.cluster, run, root(bench))


def elsewhere(template: Manifest) -> None:
    template["spec"]["template"]["spec"]["nodeSelector"] = {"nobody": "has-it"}


REFUSED: list[tuple[str, Json, Change, str]] = [
    ("kubelet_refused", {"gpus": 2, "gpu_memory_gib": 15}, lambda _: None, "nvidia.com/gpu"),
    ("kubelet_refused-cpu", {"cpus": 900}, lambda _: None, "resource: cpu"),
    ("kubelet_refused-affinity", {}, elsewhere, "node affinity"),
]


@pytest.mark.parametrize(("name", "compute", "change", "said"), REFUSED)
def test_promise_19_a_pod_that_the_kubelet_refuses(
    name: str, compute: Json, change: Change, said: str, bench: Bench
) -> None:
    def straight_to_the_node(template: Manifest) -> None:
        template["spec"]["template"]["spec"]["nodeName"] = "node1"
        change(template)

    run = bench.launcher(straight_to_the_node).launch(bench.config(compute=compute)).run_id
    assert said in recorded(name, bench.cluster, run, root(bench)).said


def test_a_run_that_outlasts_its_deadline(bench: Bench) -> None:
    config = bench.config("seconds 0.5", training={"max_steps": 200}, compute={"max_hours": 0.003})
    run = bench.launcher().launch(config).run_id
    recorded("deadline_exceeded-running", bench.cluster, run, root(bench))


def test_a_pod_that_is_drained(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config("seconds 0.5", training={"max_steps": 200})).run_id
    until(lambda: launcher.status(run).stage == "train")
    [pod] = bench.pods(run)
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{bench.cluster.namespace}/pods/{name}/eviction"
    bench.cluster.api.send("POST", path, body=eviction)
    recorded("disrupted-drained", bench.cluster, run, root(bench))


def test_a_run_that_gives_no_sign_of_life(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config("seconds 0.5", training={"max_steps": 200})).run_id
    until(lambda: launcher.status(run).stage == "train")
    recorded("silent", bench.cluster, run, root(bench), later=timedelta(minutes=5))


def test_promise_17_a_bad_image_ends_within_the_start_timeout(bench: Bench) -> None:
    launcher = bench.launcher(image("localhost/nobody-has-it:1"))
    run = launcher.launch(bench.config()).run_id
    recorded("image_pull", bench.cluster, run, root(bench), words="says: “failed to pull")
    ended = launcher.wait(run, timeout=SECONDS, start_timeout=3)
    assert ended.phase == "Failed"
    assert "no pod of it ran within 3 s" in ended.message
    found = launcher.why(run)
    assert found
    assert (found.category, "localhost/nobody-has-it:1" in found.said) == (Category.IMAGE_PULL, True)


def end(bench: Bench, run: str) -> None:
    """Its deadline is over."""
    job = bench.cluster.get_job(run)
    assert job
    assert bench.cluster.patch_job(run, job["metadata"]["uid"], {"spec": {"activeDeadlineSeconds": 1}})


def root(bench: Bench) -> Storage:
    return open_storage(bench.root)
