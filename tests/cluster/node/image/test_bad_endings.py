"""How runs of the image that ships end when they cannot go on: each in its category, none with a result."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from examples.demo.__main__ import ROOT as BUCKET
from job.contract.documents import Outcome
from job.contract.keys import RunKeys, latest_key
from job.storage.opening import open_storage
from launcher.categories import Category
from launcher.diagnosis import Diagnosis
from launcher.kube import Json
from launcher.launching import put_documents
from launcher.manifest import Manifest, set_env, trainer
from tests.cluster.conftest import SECONDS, until
from tests.cluster.node.conftest import Bench, Change, Site
from tests.cluster.node.test_diagnosis import image, no_other_attempt, secret, unreachable_store
from tests.storage.faulty_s3 import faulty_s3, goes_away


def ended(bench: Bench, run: str, start_timeout: float | None = None) -> Diagnosis:
    """What `why` says once the run has failed; it has no result."""
    launcher = bench.launcher()
    assert launcher.wait(run, timeout=SECONDS, start_timeout=start_timeout).phase == "Failed"
    assert open_storage(bench.root).head(RunKeys(run).result) is None
    found = launcher.why(run)
    assert found
    return found


def created(bench: Bench, job: Json) -> None:
    """By kubectl: the launcher is a convenience."""
    path = bench.directory / "created.json"
    path.write_text(json.dumps(job))
    bench.kubectl("create", "-f", str(path))


CANNOT_START: list[tuple[Change, Category]] = [
    (image("localhost/nobody-has-it:1"), Category.IMAGE_PULL),
    (secret, Category.CONTAINER_CANNOT_START),
]


@pytest.mark.parametrize(("change", "category"), CANNOT_START)
def test_a_pod_that_cannot_start(change: Change, category: Category, bench: Bench, small: Path) -> None:
    launcher = bench.launcher(change)
    run = launcher.launch(small).run_id
    until(lambda: (told := launcher.why(run)) and told.category == category)
    found = ended(bench, run, start_timeout=3)
    assert found.category == category
    assert "nobody-" in found.said


def test_a_config_that_is_wrong_in_a_job_that_kubectl_created(bench: Bench, small: Path) -> None:
    """The launcher refuses such a config; whoever goes without it hears of it from the pod."""
    open_storage(bench.root).put("bad.yaml", b"name: bot\nbase_modle: s3://demo/tiny/base/\n")
    job = bench.launcher().prepare(small).job
    job["metadata"]["name"] = "bad"
    set_env(trainer(job), "FINETUNE_CONFIG", f"{bench.root}/bad.yaml")
    created(bench, job)
    found = ended(bench, "bad")
    assert found.category == Category.CONFIG
    assert "base_modle" in found.text


def test_rows_that_nobody_can_read(bench: Bench) -> None:
    open_storage(BUCKET).put("tiny/bad.jsonl", b"no JSON\n" * 8)
    config = bench.config(dataset={"train": f"{BUCKET}/tiny/bad.jsonl"}, compute={"memory_gib": 4})
    found = ended(bench, bench.launcher().launch(config).run_id)
    assert found.category == Category.DATA
    assert found.resolution


def test_a_store_that_does_not_answer(bench: Bench, small: Path) -> None:
    def alone(template: Manifest) -> None:
        no_other_attempt(template)
        unreachable_store(template)

    found = ended(bench, bench.launcher(alone).launch(small).run_id)
    assert found.category == Category.S3_UNAVAILABLE


def test_a_store_that_goes_away_at_the_end(bench: Bench, small: Path, site: Site) -> None:
    """Between the adapter, which is published, and the result."""
    behind = site.machine.s3.endpoint
    address = urlsplit(behind).hostname
    assert address
    with faulty_s3(behind, address) as (store, url):
        store.faults = [goes_away("PUT", "/gguf/")]

        def until_then(template: Manifest) -> None:
            no_other_attempt(template)
            set_env(trainer(template), "AWS_ENDPOINT_URL_S3", url)
            set_env(trainer(template), "FINETUNE_S3_BUDGET_SECONDS", "2")

        run = bench.launcher(until_then).launch(small).run_id
        found = ended(bench, run)
    assert found.category == Category.S3_UNAVAILABLE
    storage = open_storage(bench.root)
    assert storage.head(RunKeys(run).attempt(1).published)
    assert storage.head(latest_key("bot")) is None


def test_training_that_takes_more_memory_than_there_is(bench: Bench) -> None:
    """The kernel kills the child, and mostly the supervisor lives to tell: memory of a process that dies is not free at
    once, and until it is the kernel may take more. With more memory the run goes on.
    """

    def with_memory(gib: float) -> Path:
        return bench.config(compute={"cpus": 2, "memory_gib": gib}, samples={"prompts": []})

    def soon_given_up(template: Manifest) -> None:
        no_other_attempt(template)
        set_env(trainer(template), "FINETUNE_STALE_SECONDS", "10")  # of an attempt that was killed without a word

    launcher = bench.launcher(soon_given_up)
    run = launcher.launch(with_memory(0.6)).run_id
    found = ended(bench, run)
    assert found.category in (Category.CHILD_OUT_OF_MEMORY, Category.OUT_OF_MEMORY)
    assert "compute.memory_gib" in found.resolution
    assert launcher.launch(with_memory(4), resume=True).run_id == run
    resumed = launcher.wait(run, timeout=SECONDS)
    assert (resumed.phase, resumed.attempt) == ("Succeeded", 2), resumed


def test_a_container_that_takes_more_memory_than_there_is(bench: Bench) -> None:
    """So little that there is none for the supervisor, which tells nothing."""
    config = bench.config(compute={"cpus": 2, "memory_gib": 0.03})
    found = ended(bench, bench.launcher(no_other_attempt).launch(config).run_id)
    assert found.category == Category.OUT_OF_MEMORY
    assert "compute.memory_gib" in found.resolution


def test_a_scratch_that_is_smaller_than_the_job_was_told(bench: Bench, small: Path) -> None:
    """The kubelet evicts such a pod whenever it has written so much, and Kubernetes makes another each time."""
    launcher = bench.launcher()
    prepared = launcher.prepare(small)
    put_documents(prepared, open_storage(bench.root))
    pod = prepared.job["spec"]["template"]["spec"]
    [scratch] = [volume for volume in pod["volumes"] if volume["name"] == "scratch"]
    scratch["emptyDir"]["sizeLimit"] = "1Ki"
    created(bench, prepared.job)
    until(lambda: (found := launcher.why(prepared.run_id)) and found.category == Category.EVICTED)
    assert open_storage(bench.root).head(RunKeys(prepared.run_id).result) is None


def test_a_deadline_before_the_first_step(bench: Bench, small: Path) -> None:
    """SIGTERM through tini, as Kubernetes tells it, while the training stack is imported."""

    def patient(template: Manifest) -> None:
        template["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 60

    launcher = bench.launcher(patient)
    run = launcher.launch(small).run_id
    until(lambda: launcher.status(run).stage == "train")
    assert launcher.status(run).step is None
    bench.kubectl("patch", "job", run, "-p", '{"spec": {"activeDeadlineSeconds": 1}}')
    assert ended(bench, run).category == Category.DEADLINE_EXCEEDED
    outcome = open_storage(bench.root).get(RunKeys(run).attempt(1).outcome)
    assert outcome
    assert Outcome.model_validate_json(outcome[0]).code == 75
