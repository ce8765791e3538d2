"""How runs of the image that ships end when they cannot go on: each in its category, none with a result."""

import json
from pathlib import Path

from examples.demo.__main__ import ROOT as BUCKET
from job.contract.documents import Outcome
from job.contract.keys import RunKeys
from job.storage.opening import open_storage
from launcher.categories import Category
from launcher.diagnosis import Diagnosis
from launcher.manifest import Manifest, set_env, trainer
from tests.cluster.conftest import until
from tests.cluster.node.conftest import Bench


def ended(bench: Bench, run: str) -> Diagnosis:
    """What `why` says once the run has failed; it has no result."""
    launcher = bench.launcher()
    assert launcher.wait(run, timeout=300).phase == "Failed"
    assert open_storage(bench.root).head(RunKeys(run).result) is None
    found = launcher.why(run)
    assert found
    return found


def once(template: Manifest) -> None:
    """No second attempt."""
    template["spec"]["backoffLimit"] = 0


def test_a_config_that_is_wrong_in_a_job_that_kubectl_created(bench: Bench, small: Path, tmp_path: Path) -> None:
    """The launcher refuses such a config; whoever goes without it hears of it from the pod."""
    open_storage(bench.root).put("bad.yaml", b"name: bot\nbase_modle: s3://demo/tiny/base/\n")
    job = bench.launcher().prepare(small).job
    job["metadata"]["name"] = "bad"
    set_env(trainer(job), "FINETUNE_CONFIG", f"{bench.root}/bad.yaml")
    (tmp_path / "job.json").write_text(json.dumps(job))
    bench.kubectl("create", "-f", str(tmp_path / "job.json"))
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
    def unreachable(template: Manifest) -> None:
        once(template)
        set_env(trainer(template), "AWS_ENDPOINT_URL_S3", "http://10.244.0.1:1")
        set_env(trainer(template), "FINETUNE_S3_BUDGET_SECONDS", "2")

    found = ended(bench, bench.launcher(unreachable).launch(small).run_id)
    assert found.category == Category.S3_UNAVAILABLE


def test_training_that_takes_more_memory_than_there_is(bench: Bench) -> None:
    """The kernel kills the child, and tini and the supervisor live to tell."""
    config = bench.config(compute={"cpus": 2, "memory_gib": 0.6}, samples={"prompts": []})
    found = ended(bench, bench.launcher(once).launch(config).run_id)
    assert found.category == Category.CHILD_OUT_OF_MEMORY
    assert "compute.memory_gib" in found.resolution


def test_a_pod_that_is_told_to_stop_before_its_first_step(bench: Bench, small: Path) -> None:
    """Through tini, as Kubernetes tells it, while the training stack is imported."""
    launcher = bench.launcher()
    run = launcher.launch(small).run_id
    until(lambda: launcher.status(run).stage == "train")
    assert launcher.status(run).step is None
    launcher.cancel(run)
    keys, storage = RunKeys(run), open_storage(bench.root)
    outcome = storage.get(keys.attempt(1).outcome)
    assert outcome
    assert Outcome.model_validate_json(outcome[0]).code == 75
    assert storage.head(keys.result) is None
