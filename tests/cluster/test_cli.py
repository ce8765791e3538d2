"""`finetune` as it is typed, against a real API server."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from examples.cluster.control_plane import ControlPlane
from job.contract.documents import Lease
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.doctor import NEEDED
from launcher.status import Phase, RunStatus
from tests.conftest import ROOT

FINETUNE = Path(sys.executable).with_name("finetune")


class Terminal:
    """Runs commands for one namespace and one root."""

    def __init__(self, plane: ControlPlane, cluster: Cluster, storage: Storage) -> None:
        self.runs, self.template = storage.uri, ROOT / "k8s" / "job.yaml"
        self.cluster = ["--kubeconfig", str(plane.kubeconfig()), "-n", cluster.namespace]
        self.environment = dict(os.environ)

    def start(self, command: str, *words: str, cluster: bool = True) -> subprocess.Popen[str]:
        """A command that goes on."""
        flags = ["--runs", self.runs, "--template", str(self.template), *(self.cluster if cluster else [])]
        # Whoever runs these tests in the background ignores SIGINT, and so would what they start.
        given: list[str | Path] = ["env", "--default-signal=INT", FINETUNE, command, *words, *flags]
        pipe = subprocess.PIPE
        return subprocess.Popen(given, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, command: str, *words: str, cluster: bool = True) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        started = self.start(command, *words, cluster=cluster)
        stdout, stderr = started.communicate()
        assert "Traceback" not in stderr, stderr
        return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)


@pytest.fixture
def terminal(plane: ControlPlane, cluster: Cluster, storage: Storage) -> Terminal:
    return Terminal(plane, cluster, storage)


def test_from_launch_to_cancel(terminal: Terminal, config_file: Path, storage: Storage) -> None:
    valid = terminal.run("validate", str(config_file), cluster=False)
    assert valid.returncode == 0, valid.stderr
    rendered = terminal.run("render", str(config_file), cluster=False)
    assert "kind: Job" in rendered.stdout
    dry = terminal.run("launch", str(config_file), "--dry-run=server")
    assert (dry.returncode, "would be created" in dry.stdout) == (0, True), dry.stderr
    launched = terminal.run("launch", str(config_file), "-o", "json")
    assert launched.returncode == 0, launched.stderr
    first = json.loads(launched.stdout)
    assert first["phase"] == "Pending"
    run_id = first["run_id"]
    assert run_id in valid.stdout
    again = terminal.run("launch", str(config_file))
    assert (again.returncode, "is there already" in again.stderr) == (0, True), again.stderr
    waited = terminal.run("wait", run_id, "--timeout", "1")
    assert (waited.returncode, waited.stdout) == (124, "")
    cancelled = terminal.run("cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    ended = terminal.run("wait", run_id, "--timeout", "60", "-o", "json")
    assert (ended.returncode, json.loads(ended.stdout)["phase"]) == (1, "Cancelled"), ended.stderr


def test_a_wrong_config_is_78_with_every_error(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("name: Bot\nbase_model: /base\ntraining: {learning_rat: 1}\n")
    ended = terminal.run("launch", str(tmp_path / "wrong.yaml"))
    assert (ended.returncode, ended.stdout) == (78, "")
    for words in ("learning_rate", "name", "dataset"):
        assert words in ended.stderr


def test_a_config_that_is_not_there_is_78_and_named(terminal: Terminal) -> None:
    ended = terminal.run("launch", "nowhere.yaml")
    assert (ended.returncode, "nowhere.yaml" in ended.stderr) == (78, True)


def test_a_cluster_that_is_not_there_is_64(terminal: Terminal, config_file: Path) -> None:
    terminal.cluster = ["--kubeconfig", "/nowhere"]
    ended = terminal.run("launch", str(config_file))
    assert (ended.returncode, "--kubeconfig" in ended.stderr) == (64, True), ended.stderr


def test_progress_comes_from_the_store(
    terminal: Terminal, config_file: Path, storage: Storage, cluster: Cluster
) -> None:
    launched = json.loads(terminal.run("launch", str(config_file), "-o", "json").stdout)
    lease = Lease(attempt=1, heartbeat_at=datetime.now(UTC), stage="train", step=12, of=60, loss=1.5, eta_seconds=90.0)
    storage.put(RunKeys(launched["run_id"]).lease, canonical_bytes(lease))
    told = json.loads(terminal.run("status", launched["run_id"], "-o", "json").stdout)
    assert (told["step"], told["of"], told["stage"]) == (12, 60, "train")


def test_a_job_that_is_deleted_ends_the_wait(
    terminal: Terminal, config_file: Path, storage: Storage, cluster: Cluster
) -> None:
    launched = json.loads(terminal.run("launch", str(config_file), "-o", "json").stdout)
    keys = RunKeys(launched["run_id"])
    lease = Lease(attempt=1, heartbeat_at=datetime.now(UTC), stage="train")  # a pod of it may still beat
    storage.put(keys.lease, canonical_bytes(lease))
    waiting = terminal.start("wait", keys.run_id, "--timeout", "60")
    assert waiting.stderr
    assert keys.run_id in waiting.stderr.readline()  # it has seen the Job
    assert cluster.delete_job(keys.run_id, launched["job_uid"])
    _, said = waiting.communicate()
    assert (waiting.returncode, "its Job was deleted" in said) == (1, True), said


@pytest.mark.parametrize("flag", ["--timeout", "--start-timeout"])
def test_a_time_limit_without_wait_is_64(terminal: Terminal, config_file: Path, cluster: Cluster, flag: str) -> None:
    ended = terminal.run("launch", str(config_file), flag, "8")
    assert (ended.returncode, "--wait" in ended.stderr) == (64, True)
    assert cluster.jobs("")[0] == []


def test_an_unknown_run_is_told(terminal: Terminal) -> None:
    for run in ("nobody-0123456789", "nobody", "nobody@latest"):
        ended = terminal.run("status", run)
        assert (ended.returncode, ended.stdout) == (78, "")
        assert f"there is no run {run}" in ended.stderr
        assert "finetune list" in ended.stderr


def test_a_status_in_yaml_is_the_one_in_json(terminal: Terminal, config_file: Path) -> None:
    run_id = json.loads(terminal.run("launch", str(config_file), "-o", "json").stdout)["run_id"]
    told = [terminal.run("status", run_id, "-o", form) for form in ("yaml", "json")]
    statuses = [yaml.safe_load(told[0].stdout), json.loads(told[1].stdout)]
    assert statuses[0] == statuses[1]
    assert RunStatus.model_validate_json(told[1].stdout).phase == Phase.PENDING
    assert told[0].stdout.startswith("schema_version: 1\n")


def test_what_is_wrong_with_several_inputs_is_told_at_once(terminal: Terminal, config_file: Path) -> None:
    config = json.loads(config_file.read_text())
    config |= {"base_model": "/nowhere/base", "compute": {"gpus": 0, "max_hours": 1000}}
    config["dataset"]["train"] = "/nowhere/rows.jsonl"
    config_file.write_text(json.dumps(config))
    refused = terminal.run("validate", str(config_file))
    assert refused.returncode == 78
    for words in ("/nowhere/base", "/nowhere/rows.jsonl", "compute.max_hours"):
        assert words in refused.stderr


def test_who_may_not_launch_is_told_by_validate(terminal: Terminal, config_file: Path) -> None:
    refused = terminal.run("validate", str(config_file), "--as", "nobody")
    assert (refused.returncode, "jobs.batch" in refused.stderr) == (77, True), refused.stderr


def test_a_timeout_is_written_as_kubectls(terminal: Terminal) -> None:
    wrong = terminal.run("wait", "bot-0123456789", "--timeout", "soon")
    assert (wrong.returncode, "30m" in wrong.stderr) == (64, True)
    unknown = terminal.run("wait", "bot-0123456789", "--timeout", "1h30m")
    assert unknown.returncode == 78


def test_validate_counts_the_rows_and_names_the_line_of_a_bad_one(
    terminal: Terminal, config_file: Path, tmp_path: Path
) -> None:
    valid = terminal.run("validate", str(config_file), cluster=False)
    assert (valid.returncode, "is valid: 8 rows to train on" in valid.stdout) == (0, True), valid.stderr
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"messages": []}\n')
    refused = terminal.run("validate", str(config_file), cluster=False)
    assert (refused.returncode, refused.stdout) == (78, "")
    assert f"{rows}, line 9, messages: messages is empty" in refused.stderr
    config = json.loads(config_file.read_text())
    config["dataset"]["max_bad_rows"] = 1
    config_file.write_text(json.dumps(config))
    allowed = terminal.run("validate", str(config_file), cluster=False)
    assert (allowed.returncode, "8 rows" in allowed.stdout) == (0, True), allowed.stderr
    assert f"left out: {rows}, line 9" in allowed.stderr


def test_a_launch_leaves_inputs_that_it_cannot_read_to_the_pod(
    terminal: Terminal, config_file: Path, storage: Storage
) -> None:
    config = json.loads(config_file.read_text()) | {"base_model": "s3://not-there/base/"}
    config_file.write_text(json.dumps(config))
    launched = terminal.run("launch", str(config_file), "--freeze=pod", "-o", "name")
    assert launched.returncode == 0, launched.stderr
    run_id = launched.stdout.strip()
    assert run_id in terminal.run("render", str(config_file), "--freeze=pod", cluster=False).stdout
    assert storage.head(RunKeys(run_id).spec) is None


def test_a_schedule_is_made_changed_listed_and_removed(terminal: Terminal, config_file: Path, cluster: Cluster) -> None:
    dry = terminal.run("schedule", str(config_file), "17 2 * * *", "--dry-run=server")
    assert (dry.returncode, "bot would be created" in dry.stdout) == (0, True), dry.stderr
    assert cluster.get_cronjob("bot") is None
    made = terminal.run("schedule", str(config_file), "17 2 * * *")
    first, *times = made.stdout.splitlines()
    assert (made.returncode, first, len(times)) == (0, "bot created; it starts at", 5), made.stderr
    assert all(time.endswith(" 02:17 UTC") for time in times)
    changed = terminal.run("schedule", str(config_file), "30 3 * * *", "--time-zone", "Europe/Berlin")
    assert "bot changed" in changed.stdout
    header, row = terminal.run("schedules").stdout.splitlines()
    assert header.startswith("NAME  CRON        TIME ZONE")
    assert row.startswith("bot   30 3 * * *  Europe/Berlin")
    removed = terminal.run("unschedule", "bot")
    assert (removed.returncode, cluster.get_cronjob("bot")) == (0, None), removed.stderr
    again = terminal.run("unschedule", "bot")
    assert (again.returncode, "there is no schedule bot" in again.stderr) == (78, True)


def test_a_doctor_without_rights_is_77_and_names_them(terminal: Terminal) -> None:
    terminal.cluster += ["--as", "nobody"]
    ill = terminal.run("doctor", "-o", "json")
    checks = {check["name"]: check for check in json.loads(ill.stdout)}
    assert (ill.returncode, checks["rights"]["ok"]) == (77, False), ill.stderr
    assert all(str(right) in checks["rights"]["message"] for right in NEEDED)
    assert checks["rights"]["resolution"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_completion_of_bash_is_sourced_and_completes(tmp_path: Path) -> None:
    script = """
    source <(finetune completion bash) || exit
    complete -p finetune
    COMP_WORDS=(finetune sch) COMP_CWORD=1
    _finetune_completion finetune
    echo "${COMPREPLY[@]}"
    """
    path = f"{FINETUNE.parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["complete -o nosort -F _finetune_completion finetune", "schedule schedules"]
