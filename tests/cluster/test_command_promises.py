"""What `finetune` promises whoever types it: what it refuses, what it shows, how it lets go, and what it never tells."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGINT

import pytest
import yaml

from examples.cluster.control_plane import ControlPlane
from job.contract.errors import ConfigError
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes
from job.run import Run
from job.storage import Storage
from job.storage.opening import open_storage
from launcher import cli
from launcher.cancelling import cancel
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.launching import Prepared, launch
from launcher.manifest import SPEC_SHA256, Manifest
from launcher.status import Phase
from launcher.watching import look
from tests.cluster.conftest import SECONDS, post, until
from tests.cluster.faults import FaultyApi
from tests.cluster.test_cli import Terminal
from tests.cluster.test_launch_promises import (
    ELSEWHERE,
    HELD,
    at_rest,
    claim,
    delete,
    hold,
    job_of,
    names,
    process,
    queued,
    release,
    survives,
)
from tests.cluster.test_launching import fail
from tests.launcher.runs import publish


@pytest.fixture
def terminal(plane: ControlPlane, cluster: Cluster, storage: Storage) -> Terminal:
    return Terminal(plane, cluster, storage)


def with_template(terminal: Terminal, template: Manifest, path: Path) -> None:
    path.write_text(yaml.safe_dump(template))
    terminal.template = path


def test_promise_3_another_spec_is_73_with_the_difference(
    terminal: Terminal, config_file: Path, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(queued(prepared), storage, cluster)
    before = at_rest(cluster, prepared.run_id)
    key = RunKeys(prepared.run_id).spec
    found = storage.get(key)
    assert found
    storage.put(key, found[0].replace(b'"learning_rate":0.0002', b'"learning_rate":0.5'))
    refused = terminal.run("launch", str(config_file))
    assert (refused.returncode, refused.stdout) == (73, ""), refused.stderr
    assert "training.learning_rate was 0.5 and is 0.0002" in refused.stderr
    assert job_of(cluster, prepared.run_id) == before


def test_promise_4_a_run_that_has_succeeded_trains_nothing_though_its_job_is_gone(
    terminal: Terminal, config_file: Path, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(queued(prepared), storage, cluster)
    publish(Run(storage, prepared.spec, prepared.run_id))
    delete(cluster, prepared.run_id)
    for words in ((), ("--resume",), ("--wait",)):
        told = terminal.run("launch", str(config_file), "-o", "json", *words)
        assert (told.returncode, json.loads(told.stdout)["phase"]) == (0, "Succeeded"), told.stderr
        assert "has its result already" in told.stderr
    lora = f"{storage.uri}/runs/{prepared.run_id}/attempts/1/lora/"
    assert json.loads(told.stdout)["artifacts"] == {"lora": lora}
    assert lora in terminal.run("launch", str(config_file)).stdout.split()
    assert names(cluster) == set()


def everything(cluster: Cluster) -> dict[str, str]:
    """Each object of the namespace, of whatever kind, and its version."""
    groups = cluster.api.send("GET", "/apis").json()["groups"]
    served = ["/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)]
    found = {}
    for path in served:
        for kind in cluster.api.send("GET", path).json()["resources"]:
            if kind["namespaced"] and "list" in kind["verbs"]:
                listed = cluster.api.send("GET", f"{path}/namespaces/{cluster.namespace}/{kind['name']}").json()
                for item in listed["items"]:
                    metadata = item["metadata"]
                    found[f"{path}/{kind['name']}/{metadata['name']}"] = metadata["resourceVersion"]
    return found


def test_promise_6_a_dry_run_writes_nothing(
    terminal: Terminal, config_file: Path, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    until(
        lambda: {"/api/v1/configmaps/kube-root-ca.crt", "/api/v1/serviceaccounts/default"} <= set(everything(cluster))
    )
    before = everything(cluster)
    dry = terminal.run("launch", str(config_file), "--dry-run=server")
    assert (dry.returncode, dry.stdout) == (0, f"{prepared.run_id} would be created in {cluster.namespace}\n")
    assert everything(cluster) == before
    assert list(storage.list("")) == []
    launch(queued(prepared), storage, cluster)
    assert set(everything(cluster)) - set(before) >= {f"/apis/batch/v1/jobs/{prepared.run_id}"}, "it would be seen"


def is_there(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(run), storage, cluster)
    at_rest(cluster, run.run_id)


def has_failed(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(run, storage, cluster)
    fail(cluster, run.run_id)


def has_succeeded(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    publish(Run(storage, run.spec, run.run_id))


def has_another_spec(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    changed = canonical_bytes(run.spec).replace(b'"learning_rate":0.0002', b'"learning_rate":0.5')
    storage.put(RunKeys(run.run_id).spec, changed)


def has_the_job_of_another(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    job = queued(run).job
    job["metadata"]["annotations"][SPEC_SHA256] = "0" * 64
    assert cluster.create_job(job)
    at_rest(cluster, run.run_id)


def runs_elsewhere(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    claim(storage, run, **ELSEWHERE)


def has_failed_and_runs_elsewhere(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    has_failed(run, storage, cluster)
    runs_elsewhere(run, storage, cluster)


def was_cancelled(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(run), storage, cluster)
    cancel(run.run_id, storage, cluster, "ada")


def is_being_deleted(run: Prepared, storage: Storage, cluster: Cluster) -> None:
    assert cluster.delete_job(run.run_id, hold(run, storage, cluster))
    until(lambda: job_of(cluster, run.run_id)["metadata"]["finalizers"] == [HELD])


Case = Callable[[Prepared, Storage, Cluster], None]
PLANNED: list[tuple[Case, str, str, str]] = [
    (is_there, "", "attach", "would find its Job in {namespace}"),
    (is_there, "--resume", "attach", "would find its Job in {namespace}"),
    (has_succeeded, "--resume", "nothing", "has its result already: nothing would be done"),
    (has_failed, "--resume", "replace", "would be created anew in {namespace}: its Job has ended (Failed)"),
    (was_cancelled, "", "create", "was cancelled by ada, and would be created anew in {namespace}"),
    (is_being_deleted, "", "replace", "would be created anew in {namespace}: its Job is being deleted"),
]
REFUSED: list[tuple[Case, str, int, str]] = [
    (has_failed, "", 1, "launch with --resume to go on"),
    (has_another_spec, "", 73, "training.learning_rate was 0.5 and is 0.0002"),
    (has_the_job_of_another, "", 73, "belongs to another spec"),
    (runs_elsewhere, "", 73, "site east"),
    (has_failed_and_runs_elsewhere, "--resume", 73, "site east"),
]


def at_work(cluster: Cluster) -> dict[str, str]:
    """All but the events, which tell of what was before; once nothing changes any more."""

    def there() -> dict[str, str]:
        return {name: version for name, version in everything(cluster).items() if "/events/" not in name}

    def same_for_a_while() -> dict[str, str] | None:
        before = there()
        time.sleep(0.5)
        return before if before == there() else None

    return until(same_for_a_while) or {}


def kept(storage: Storage) -> dict[str, str]:
    return {stat.key: stat.etag for stat in storage.list("")}


@pytest.mark.parametrize(("case", "flag", "action", "message"), PLANNED)
def test_promise_6_a_dry_run_tells_what_a_launch_does(
    case: Case,
    flag: str,
    action: str,
    message: str,
    terminal: Terminal,
    config_file: Path,
    prepared: Prepared,
    storage: Storage,
    cluster: Cluster,
) -> None:
    case(prepared, storage, cluster)
    before = at_work(cluster), kept(storage)
    words = ("launch", str(config_file), *filter(None, [flag]))
    told = [terminal.run(*words, "--dry-run=server", *form) for form in ((), ("-o", "json"), ("-o", "yaml"))]
    assert [each.returncode for each in told] == [0, 0, 0], told
    said = message.format(namespace=cluster.namespace)
    assert told[0].stdout == f"{prepared.run_id} {said}\n"
    planned = json.loads(told[1].stdout)
    assert planned == yaml.safe_load(told[2].stdout)
    assert (planned["run_id"], planned["action"], planned["message"]) == (prepared.run_id, action, said)
    assert terminal.run(*words, "--dry-run=server", "-o", "name").stdout == f"{prepared.run_id}\n"
    assert (at_work(cluster), kept(storage)) == before
    standing = cluster.get_job(prepared.run_id)
    if case is is_being_deleted:
        release(cluster, prepared.run_id)
    done = terminal.run(*words)
    assert done.returncode == 0, done.stderr
    uids = [job and job["metadata"]["uid"] for job in (standing, cluster.get_job(prepared.run_id))]
    assert (uids[0] != uids[1]) == (action in ("create", "replace")), "as it was told"


@pytest.mark.parametrize(("case", "flag", "code", "message"), REFUSED)
def test_promise_6_a_dry_run_is_refused_as_its_launch(
    case: Case,
    flag: str,
    code: int,
    message: str,
    terminal: Terminal,
    config_file: Path,
    prepared: Prepared,
    storage: Storage,
    cluster: Cluster,
) -> None:
    case(prepared, storage, cluster)
    before = at_work(cluster), kept(storage)
    words = ("launch", str(config_file), *filter(None, [flag]))
    dry, done = terminal.run(*words, "--dry-run=server"), terminal.run(*words)
    assert [(each.returncode, each.stdout, message in each.stderr) for each in (dry, done)] == [(code, "", True)] * 2
    assert (at_work(cluster), kept(storage)) == before, "neither of them"


def test_promise_6_a_dry_run_that_resumes_shows_what_pod_security_has_against_it(
    terminal: Terminal,
    config_file: Path,
    prepared: Prepared,
    template: Manifest,
    storage: Storage,
    cluster: Cluster,
    tmp_path: Path,
) -> None:
    has_failed(prepared, storage, cluster)
    template["spec"]["template"]["spec"]["hostNetwork"] = True
    with_template(terminal, template, tmp_path / "job.yaml")
    refused = terminal.run("launch", str(config_file), "--dry-run=server", "--resume")
    assert (refused.returncode, "hostNetwork=true" in refused.stderr) == (78, True), refused


@pytest.mark.parametrize("words", [(), ("--again",), ("--freeze=pod",)], ids=" ".join)
def test_what_is_rendered_is_what_is_sent(
    words: tuple[str, ...], terminal: Terminal, config_file: Path, api: FaultyApi, cluster: Cluster
) -> None:
    rendered = terminal.run("render", str(config_file), *words, cluster=False)
    terminal.cluster = ["--kubeconfig", str(api.kubeconfig), "-n", cluster.namespace]
    launched = terminal.run("launch", str(config_file), *words)
    assert (rendered.returncode, launched.returncode) == (0, 0), launched.stderr
    [sent] = [json.loads(request.body) for request in api.seen if request.method == "POST"]
    assert yaml.safe_load(rendered.stdout) == sent


def test_promise_6_a_dry_run_shows_what_pod_security_has_against_it(
    terminal: Terminal, config_file: Path, template: Manifest, storage: Storage, cluster: Cluster, tmp_path: Path
) -> None:
    template["spec"]["template"]["spec"]["hostNetwork"] = True
    with_template(terminal, template, tmp_path / "job.yaml")
    refused = terminal.run("launch", str(config_file), "--dry-run=server")
    assert (refused.returncode, refused.stdout) == (78, "")
    assert "would violate PodSecurity" in refused.stderr
    assert "host namespaces (hostNetwork=true)" in refused.stderr
    assert (names(cluster), list(storage.list(""))) == (set(), [])


@pytest.fixture
def policy(cluster: Cluster) -> Iterator[str]:
    """A site's policy on the Jobs of the namespace; its words."""
    name, words = f"policy-{cluster.namespace}", "Jobs name whom they are paid by"
    admission = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    refusal = {"expression": "'cost-center' in object.metadata.labels", "message": words}
    spec = {"matchConstraints": {"resourceRules": [rule]}, "validations": [refusal]}
    post(cluster, f"{admission}ies", {"metadata": {"name": name}, "spec": spec})
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": here}
    post(cluster, f"{admission}ybindings", {"metadata": {"name": name}, "spec": binding})
    yield words
    for path in (f"{admission}ybindings", f"{admission}ies"):
        cluster.api.send("DELETE", f"{path}/{name}")


def test_promise_6_a_dry_run_shows_what_a_policy_has_against_it(
    policy: str, terminal: Terminal, config_file: Path, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    def is_refused() -> bool:  # not at once: the API server compiles it first
        try:
            return not cluster.create_job(prepared.job, dry_run=True)
        except ConfigError:
            return True

    until(is_refused)
    refused = terminal.run("launch", str(config_file), "--dry-run=server")
    assert (refused.returncode, policy in refused.stderr) == (78, True), refused.stderr
    assert (names(cluster), list(storage.list(""))) == (set(), [])


def test_promise_7_a_misspelt_field_is_78_and_named(
    terminal: Terminal, config_file: Path, template: Manifest, cluster: Cluster, tmp_path: Path
) -> None:
    template["spec"]["template"]["spec"]["nodeSelectr"] = {"a": "b"}
    with_template(terminal, template, tmp_path / "job.yaml")
    refused = terminal.run("launch", str(config_file))
    assert (refused.returncode, 'unknown field "spec.template.spec.nodeSelectr"' in refused.stderr) == (78, True)
    assert names(cluster) == set()


def test_promise_8_an_exceeded_quota_is_explained(
    terminal: Terminal, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    none = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    post(cluster, f"/api/v1/namespaces/{cluster.namespace}/resourcequotas", none)
    job = launch(prepared, storage, cluster).job
    assert job
    until(lambda: [event for event in cluster.events(job["metadata"]["uid"]) if event["reason"] == "FailedCreate"])
    told = terminal.run("why", prepared.run_id, "-o", "json")
    found = json.loads(told.stdout)
    assert (told.returncode, found["category"]) == (0, "QuotaExceeded"), told
    assert "exceeded quota: none, requested: pods=1" in found["said"]
    text = terminal.run("why", prepared.run_id).stdout
    assert "exceeded quota: none, requested: pods=1" in text
    assert found["summary"][1:] in text
    assert found["resolution"] in text


def test_promise_13_a_suspended_job_is_queued_and_its_deadline_does_not_run(
    terminal: Terminal, config_file: Path, prepared: Prepared, cluster: Cluster
) -> None:
    config = json.loads(config_file.read_text())
    config["compute"] |= {"queue": "gpus"}
    config_file.write_text(json.dumps(config))
    told = json.loads(terminal.run("launch", str(config_file), "-o", "json").stdout)
    assert (told["run_id"], told["phase"], told["reason"]) == (prepared.run_id, "Queued", "WaitsForQuota")
    job = at_rest(cluster, prepared.run_id)
    assert "startTime" not in job["status"]
    assert cluster.patch_job(prepared.run_id, job["metadata"]["uid"], {"spec": {"activeDeadlineSeconds": 1}})
    waited = terminal.run("wait", prepared.run_id, "--timeout", "2", "-o", "json")
    assert (waited.returncode, waited.stdout) == (124, ""), "it has been queued for longer than its deadline"
    assert "Queued" in waited.stderr
    assert cluster.patch_job(prepared.run_id, job["metadata"]["uid"], {"spec": {"suspend": False}})
    fail(cluster, prepared.run_id)


# Launchers that go away


def command(*words: str) -> None:
    raise SystemExit(cli.main(words))


def flags(api: FaultyApi, terminal: Terminal, cluster: Cluster) -> tuple[str, ...]:
    """Those of a terminal, through the server between."""
    site = ("--runs", terminal.runs, "--template", str(terminal.template))
    return (*site, "--kubeconfig", str(api.kubeconfig), "-n", cluster.namespace)


def test_promise_35_a_wait_killed_at_any_request_leaves_the_run_to_the_next(
    terminal: Terminal, api: FaultyApi, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(queued(prepared), storage, cluster)
    before = at_rest(cluster, prepared.run_id)
    wait = ("wait", prepared.run_id, *flags(api, terminal, cluster))
    for number in (1, 2, 3):  # list, pods, watch
        assert not survives(api, "before the API server hears of it", number, command_killed, wait)
    api.seen.clear()
    waiting = process(command, *wait)
    until(lambda: api.count("GET", "watch=true"))
    waiting.kill()
    waiting.join(SECONDS)
    assert job_of(cluster, prepared.run_id) == before
    assert cluster.patch_job(prepared.run_id, before["metadata"]["uid"], {"spec": {"suspend": False}})
    fail(cluster, prepared.run_id)
    first, second = (terminal.run("wait", prepared.run_id, "-o", "json") for _ in range(2))
    assert (first.returncode, first.stdout) == (second.returncode, second.stdout)
    assert (first.returncode, json.loads(first.stdout)["reason"]) == (1, "DeadlineExceeded")


def command_killed(words: tuple[str, ...], _: int) -> None:
    command(*words)


def test_promise_35_a_launch_that_waits_and_is_killed_is_joined_by_the_next(
    terminal: Terminal, config_file: Path, api: FaultyApi, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    waiting = process(command, "launch", str(config_file), "--wait", *flags(api, terminal, cluster))
    until(lambda: api.count("GET", "watch=true"))
    waiting.kill()
    waiting.join(SECONDS)
    uid = job_of(cluster, prepared.run_id)["metadata"]["uid"]
    publish(Run(storage, prepared.spec, prepared.run_id))
    ended = terminal.run("wait", prepared.run_id, "-o", "json")
    assert (ended.returncode, json.loads(ended.stdout)["phase"]) == (0, "Succeeded")
    assert job_of(cluster, prepared.run_id)["metadata"]["uid"] == uid


@pytest.mark.parametrize("words", [["watch"], ["wait"], ["launch", "--wait"]], ids=" ".join)
def test_promise_36_ctrl_c_detaches_and_says_how_to_come_back(
    words: list[str], terminal: Terminal, config_file: Path, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(prepared, storage, cluster)
    until(lambda: job_of(cluster, prepared.run_id)["status"].get("active"))
    before = job_of(cluster, prepared.run_id)
    watching = terminal.start(*words, str(config_file) if "launch" in words else prepared.run_id)
    said = watching.stdout if "watch" in words else watching.stderr
    assert said
    assert any(Phase.PENDING in line for line in iter(said.readline, ""))
    watching.send_signal(SIGINT)
    _, stderr = watching.communicate(timeout=SECONDS)
    assert watching.returncode == 130, stderr
    assert f"`finetune watch {prepared.run_id}` comes back" in stderr
    assert "Traceback" not in stderr
    assert job_of(cluster, prepared.run_id) == before


# Verdicts


def end_pod(cluster: Cluster, run_id: str, code: int) -> None:
    """The newest pod of a run ends, as its kubelet would tell."""

    def alive() -> list[Json]:
        pods = cluster.pods(job_of(cluster, run_id)["metadata"]["uid"])
        return [pod for pod in pods if pod["status"].get("phase") == "Pending"]

    until(alive)
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{alive()[0]['metadata']['name']}/status"
    ended = {"exitCode": code, "startedAt": "2020-01-01T00:00:00Z", "finishedAt": "2020-01-01T00:00:01Z"}
    container = {"name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status = {
        "phase": "Failed" if code else "Succeeded",
        "containerStatuses": [container | {"state": {"terminated": ended}}],
    }
    merge = "application/merge-patch+json"
    cluster.api.send("PATCH", path, body={"status": status}, content_type=merge)


def test_promise_38_a_failed_pod_is_no_verdict_and_a_result_is(
    prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(prepared, storage, cluster)
    end_pod(cluster, prepared.run_id, 143)
    until(lambda: job_of(cluster, prepared.run_id)["status"].get("failed"))
    status = look(prepared.run_id, storage, cluster)
    assert (status.phase, status.terminal, status.exit_code) == (Phase.RECOVERING, False, 143)
    publish(Run(storage, prepared.spec, prepared.run_id))
    assert look(prepared.run_id, storage, cluster).phase == Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("code", "condition", "reason"), [(78, "Failed", "PodFailurePolicy"), (0, "Complete", "NoResult")]
)
def test_promise_38_the_job_s_condition_is_the_verdict_and_complete_is_none_without_a_result(
    code: int, condition: str, reason: str, terminal: Terminal, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    launch(prepared, storage, cluster)
    end_pod(cluster, prepared.run_id, code)
    told = terminal.run("wait", prepared.run_id, "-o", "json", "--timeout", "60")
    status = json.loads(told.stdout)
    assert (told.returncode, status["phase"], status["reason"], status["exit_code"]) == (1, "Failed", reason, code)
    conditions = job_of(cluster, prepared.run_id)["status"]["conditions"]
    assert condition in [each["type"] for each in conditions if each["status"] == "True"]


# Secrets

CANARIES = ("c4n4ry-of-a-key", "c4n4ry-of-a-token", "c4n4ry-of-a-url", "not-a-secret")  # the last is the store's own


@pytest.fixture
def careless(bucket: str, terminal: Terminal) -> Terminal:
    """A terminal whose environment is full of secrets, one of them in the store's URL; and its root is in that store."""
    scheme, address = os.environ["AWS_ENDPOINT_URL_S3"].split("://")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] in CANARIES
    terminal.runs = bucket
    terminal.environment = os.environ | {
        "WANDB_API_KEY": CANARIES[0],
        "HF_TOKEN": CANARIES[1],
        "AWS_ENDPOINT_URL_S3": f"{scheme}://somebody:{CANARIES[2]}@{address}",
        "AWS_MAX_ATTEMPTS": "1",
        "FINETUNE_S3_BUDGET_SECONDS": "1",
    }
    return terminal


def told_by(*done: subprocess.CompletedProcess[str]) -> str:
    return "".join(each.stdout + each.stderr for each in done)


def betrayed(text: str) -> list[str]:
    return [canary for canary in CANARIES if canary in text]


def test_promise_59_no_secret_is_told(
    careless: Terminal, config_file: Path, prepared: Prepared, cluster: Cluster
) -> None:
    run_id = prepared.run_id
    made = careless.run("render", str(config_file), cluster=False), careless.run("launch", str(config_file))
    until(lambda: job_of(cluster, run_id)["status"].get("active"))
    job = job_of(cluster, run_id)
    asked = [["status", run_id, "-o", "yaml"], ["why", run_id], ["logs", run_id]]
    with ThreadPoolExecutor(2) as both:
        done = [*made, *both.map(lambda words: careless.run(*words), asked)]
    assert [each.returncode for each in done] == [0] * len(done), told_by(*done)
    assert all(run_id in each.stdout for each in done[:3])
    assert betrayed(told_by(*done)) == []
    kept = open_storage(careless.runs)
    objects = [found[0].decode() for stat in kept.list("") if (found := kept.get(stat.key))]
    assert len(objects) == 3, "two copies of the config, and the spec"
    assert betrayed(json.dumps([job, cluster.pods(job["metadata"]["uid"]), objects])) == []


def test_promise_59_no_secret_is_told_by_a_refusal(
    careless: Terminal, config_file: Path, plane: ControlPlane, cluster: Cluster, tmp_path: Path
) -> None:
    careless.environment["AWS_SECRET_ACCESS_KEY"] = CANARIES[0]
    store = careless.run("launch", str(config_file))
    access = yaml.safe_load(plane.kubeconfig().read_text())
    access["users"][0]["user"] = {"token": CANARIES[1]}
    (tmp_path / "kubeconfig").write_text(json.dumps(access))
    careless.cluster, careless.runs = ["--kubeconfig", str(tmp_path / "kubeconfig")], str(tmp_path / "runs")
    server = careless.run("launch", str(config_file))
    assert [store.returncode, server.returncode] == [77, 77], told_by(store, server)
    assert betrayed(told_by(store, server)) == []


def test_promise_59_no_secret_is_told_of_a_store_that_is_away(careless: Terminal) -> None:
    careless.environment["AWS_ENDPOINT_URL_S3"] = f"http://somebody:{CANARIES[2]}@127.0.0.1:1"
    away = careless.run("list")
    assert away.returncode == 69
    assert betrayed(told_by(away)) == []


def test_stdout_carries_the_answer_only_while_the_store_is_away(careless: Terminal) -> None:
    careless.environment["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:1"
    away = careless.run("list", "-o", "json")
    assert (away.returncode, away.stdout) == (69, "")
