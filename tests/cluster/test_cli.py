"""`finetune` as it is typed, against a real API server."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from examples.cluster.control_plane import ControlPlane
from job.contract.documents import Lease
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes
from job.storage import Storage
from launcher.cluster import Cluster
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
        given: list[str | Path] = [FINETUNE, command, *words, *flags]
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
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(terminal.run, "wait", keys.run_id, "--timeout", "60")
        time.sleep(5)
        assert cluster.delete_job(keys.run_id, launched["job_uid"])
        ended = waiting.result()
    assert (ended.returncode, "its Job was deleted" in ended.stderr) == (1, True), ended.stderr


def test_an_unknown_run_is_told(terminal: Terminal) -> None:
    ended = terminal.run("status", "nobody-0123456789")
    assert (ended.returncode, "nobody-0123456789" in ended.stdout + ended.stderr) == (0, True)
