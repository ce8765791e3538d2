"""From a config to a model that answers, and the night after it, by the commands that a person types."""

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from examples.cluster.site import NAMESPACE, kubectl
from examples.demo.__main__ import ROOT as BUCKET
from examples.demo.answers import answers
from examples.demo.base_model import base_model
from examples.demo.data import HELD_OUT
from examples.demo.score import is_in_format
from job.contract.documents import Result
from job.contract.keys import RunKeys
from job.storage.opening import open_storage
from tests.cluster.node.conftest import Bench, Site
from tests.conftest import ROOT

FINETUNE = Path(sys.executable).with_name("finetune")
CONFIG = "examples/demo.yaml"
SECONDS = 2400  # a few minutes on two cores, and many more where others use them as well
pytestmark = pytest.mark.timeout(SECONDS + 300)
SITES_OWN = {
    "spec.template.spec.containers.trainer.image",
    "spec.template.spec.containers.trainer.env.FINETUNE_RUNS",
    "spec.template.spec.containers.trainer.env.AWS_ENDPOINT_URL_S3",
    "spec.template.spec.containers.trainer.env.AWS_REGION",
    "spec.template.spec.containers.trainer.env.AWS_CA_BUNDLE",
    "spec.template.spec.containers.trainer.env.AWS_ACCESS_KEY_ID",
    "spec.template.spec.containers.trainer.env.AWS_SECRET_ACCESS_KEY",
    "spec.template.spec.containers.trainer.volumeMounts.site-ca",
    "spec.template.spec.volumes.site-ca",
}
"""What a site of a store of its own sets in k8s/job.yaml: its image, where its store is, and who it is there."""


def start(site: Site, *words: str, program: str | Path = FINETUNE) -> subprocess.Popen[str]:
    """A command with nothing but what `make cluster` writes down."""
    return subprocess.Popen(
        [program, *words],
        env=os.environ | site.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finetune(site: Site, *words: str, program: str | Path = FINETUNE) -> str:
    """What a command prints, which must succeed."""
    with start(site, *words, program=program) as command:
        printed, complaints = command.communicate()
    assert command.returncode == 0, (words, printed, complaints)
    return printed


def parts(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of a manifest by its path, in which the items of a list go by their names."""
    if isinstance(value, list) and all(isinstance(each, dict) and "name" in each for each in value):
        for each in value:
            inner = f"{path}.{each['name']}"
            yield from parts(each, inner) if path.endswith(".containers") else [(inner, each)]
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from parts(each, f"{path}.{name}".lstrip("."))
    else:
        yield path, value


def changed(before: object, after: object) -> set[str]:
    """The paths at which two manifests differ."""
    one, other = dict(parts(before)), dict(parts(after))
    return {path for path in one | other if one.get(path) != other.get(path)}


def test_a_site_changes_its_image_and_its_store_and_nothing_else(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = yaml.safe_load((ROOT / "k8s" / "job.yaml").read_bytes())
    before, after = (yaml.safe_dump(each).splitlines() for each in (shipped, site.template))
    with capsys.disabled():
        sys.stderr.writelines(  # which is seen beside another worker, too
            f"\n{line}" for line in difflib.unified_diff(before, after, "k8s/job.yaml", "the site's", n=1)
        )
    assert changed(shipped, site.template) == SITES_OWN


def test_the_namespace_is_that_of_k8s_base(site: Site) -> None:
    """With all that is in k8s/base, and nothing of it relaxed."""
    kubeconfig = site.environment["KUBECONFIG"]
    wanted = kubectl(kubeconfig, "kustomize", str(ROOT / "k8s" / "base"))
    there = kubectl(kubeconfig, "get", "-f", "-", "-o", "name", given=wanted).split()
    assert len(there) == len(list(yaml.safe_load_all(wanted)))
    labels = json.loads(kubectl(kubeconfig, "get", "namespace", NAMESPACE, "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["finetune.local/job-policy"] == "enforce"


@pytest.fixture(scope="module")
def trained(site: Site) -> str:
    """The demo's run, from its launch to its end; its id."""
    # SITE: as if there were no other cluster, of a person's own `make cluster`.
    words = ["launch", f"CONFIG={CONFIG}", "FLAGS=-o json", "SITE=.venv/bin/finetune"]
    words += ["--no-print-directory", "-o", ".venv/.installed"]  # these tests may be started by make themselves
    run: str = json.loads(finetune(site, *words, program="make"))["run_id"]
    with start(site, "logs", "-f", run) as following:
        watched = finetune(site, "watch", run, "--timeout", str(SECONDS)).splitlines()
        logged, complaints = following.communicate(timeout=60)
    assert following.returncode == 0, complaints
    assert "Succeeded step 24/24" in watched[-1]
    assert any(" Running" in line for line in watched), watched
    events = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    assert [event["step"] for event in events if event["event"] == "step"][-1] == 24
    return run


def test_the_job_differs_from_the_template_in_what_the_config_says(site: Site, trained: str) -> None:
    """The sizes, the names, and what the pod is told of its run."""
    sent = yaml.safe_load(finetune(site, "render", CONFIG))
    trainer = "spec.template.spec.containers.trainer"
    told = {f"{trainer}.env.FINETUNE_{name}" for name in ("CONFIG", "IMAGE", "GRACE_SECONDS")}
    found = {path for path in changed(site.template, sent) if ".labels." not in path and ".annotations." not in path}
    found -= {path for path in found if path.startswith(f"{trainer}.resources.")}
    assert found == told | {"metadata.name", "spec.activeDeadlineSeconds", "spec.template.spec.volumes.scratch"}


def test_the_run_tells_how_it_went(site: Site, trained: str) -> None:
    assert json.loads(finetune(site, "status", trained, "-o", "json"))["phase"] == "Succeeded"
    assert "nothing keeps" in finetune(site, "why", trained)
    assert trained in finetune(site, "list", "demo", "-o", "name").split()
    again = json.loads(finetune(site, "launch", CONFIG, "-o", "json"))
    assert (again["run_id"], again["phase"]) == (trained, "Succeeded")


def test_the_model_that_is_pulled_answers_as_it_was_taught(site: Site, trained: str, tmp_path: Path) -> None:
    pulled = finetune(site, "pull", "demo@latest", "--to", str(tmp_path)).split()
    assert {Path(path).parent.name for path in pulled} == {"lora", "gguf", "report"}
    given = list(answers(tmp_path / "gguf" / "demo.Q8_0.gguf", HELD_OUT))
    assert sum(map(is_in_format, given)) >= 8, given
    given = [answer_with(tmp_path / "lora", prompt) for prompt in HELD_OUT[:3]]
    assert sum(map(is_in_format, given)) >= 2, given


def answer_with(adapter: Path, prompt: str) -> str:
    """The base model's greedy answer with an adapter, by peft and transformers alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model()), adapter)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=48, do_sample=False)[0, asked["input_ids"].shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def test_a_night_trains_by_itself(bench: Bench, small: Path) -> None:
    """From the schedule to artifacts: it freezes its own inputs, under the name that Kubernetes gave its Job."""
    launcher = bench.launcher()
    launcher.schedule(small, "17 2 * * *")
    bench.kubectl("create", "job", "--from=cronjob/bot", "tonight")
    ended = launcher.wait("tonight", timeout=SECONDS)
    assert ended.phase == "Succeeded", ended
    found = open_storage(bench.root).get(RunKeys("tonight").result)
    assert found
    result = Result.model_validate_json(found[0])
    assert (result.run_id, result.same_as) == ("tonight", None)
    pulled = {path.name for path in launcher.pull("bot@latest", bench.directory / "pulled").files}
    assert {"adapter_model.safetensors", "bot.F16.gguf"} <= pulled


def test_the_night_after_finds_nothing_changed(site: Site, trained: str) -> None:
    finetune(site, "schedule", CONFIG, "17 2 * * *")
    kubectl(site.environment["KUBECONFIG"], "create", "job", "--from=cronjob/demo", "demo-tonight")
    assert "Succeeded" in finetune(site, "wait", "demo-tonight", "--timeout", str(SECONDS))
    finetune(site, "unschedule", "demo")
    found = open_storage(BUCKET).get(RunKeys("demo-tonight").result)
    assert found
    assert Result.model_validate_json(found[0]).same_as == trained
    assert '"stage": "train"' not in finetune(site, "logs", "demo-tonight")
