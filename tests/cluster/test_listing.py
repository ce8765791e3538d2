"""Runs of a root and a namespace in one list, on a real API server. From the store alone: tests/launcher/test_listing.py."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from examples.cluster.control_plane import ControlPlane
from job.contract.keys import index_key
from job.run import Run
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.launching import Prepared, launch
from launcher.listing import RunLine, list_runs
from launcher.manifest import MODEL, QUEUE, Manifest
from launcher.status import Phase
from tests.cluster.conftest import until
from tests.cluster.faults import Answer, Fault, FaultyApi, Send
from tests.cluster.test_cli import Terminal
from tests.cluster.test_launch_promises import delete, nth, queued
from tests.launcher.runs import publish, run_of
from tests.storage.faulty_s3 import Request


@pytest.fixture
def terminal(plane: ControlPlane, cluster: Cluster, storage: Storage) -> Terminal:
    return Terminal(plane, cluster, storage)


MakeRun = Callable[..., str]


@pytest.fixture
def launched(config_file: Path, template: Manifest, storage: Storage, cluster: Cluster) -> MakeRun:
    """Launches the n-th run of a model line, with more labels; its id."""

    def make(number: int, line: str = "bot", **labels: str) -> str:
        config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"name": line}))
        run = queued(nth(number, config_file, template, storage))
        run.job["metadata"]["labels"] |= labels
        assert launch(run, storage, cluster).created
        return run.run_id

    return make


def ids(lines: list[RunLine]) -> list[str]:
    return [line.status.run_id for line in lines]


def index(storage: Storage, line: str, time: str) -> str:
    """A run of earlier days, of which nothing but its place in the index is left."""
    run_id = f"{line}-{time[:8]}"
    storage.put(index_key(line, time, run_id), b"")
    return run_id


def test_jobs_and_the_store_are_one_list_newest_first(launched: MakeRun, storage: Storage, cluster: Cluster) -> None:
    old, future = index(storage, "bot", "20200102T000000Z"), index(storage, "bot", "29990102T000000Z")
    first, other = launched(1), launched(2, "bottle")
    time.sleep(1)  # a Job's age is told in whole seconds
    second = launched(3)
    lines = list_runs(storage, cluster, None, 10)
    assert ids(lines)[:2] == [future, second]
    assert sorted(ids(lines)[2:4]) == sorted([first, other])
    assert ids(lines)[4:] == [old]
    assert [line.since for line in lines] == sorted((line.since for line in lines), reverse=True)
    assert {line.status.run_id: line.status.phase for line in lines}[second] == Phase.QUEUED
    assert ids(list_runs(storage, cluster, "bot", 10)) == [future, second, first, old]
    assert ids(list_runs(storage, cluster, "bot", 2)) == [future, second]


def test_a_run_that_both_know_is_listed_once(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    launch(queued(prepared), storage, cluster)
    publish(Run(storage, prepared.spec, prepared.run_id))
    [line] = list_runs(storage, cluster, None, 10)
    assert (line.name, line.status.phase, line.status.job_uid is None) == ("bot", Phase.SUCCEEDED, False)
    delete(cluster, prepared.run_id)
    [line] = list_runs(storage, cluster, None, 10)
    assert (line.status.phase, line.status.job_uid) == (Phase.SUCCEEDED, None)


def test_a_selector_narrows_to_jobs_with_such_labels(launched: MakeRun, storage: Storage, cluster: Cluster) -> None:
    index(storage, "bot", "20200102T000000Z")
    small, large = launched(1, **{QUEUE: "small"}), launched(2, **{QUEUE: "large"})
    assert ids(list_runs(storage, cluster, None, 10, f"{QUEUE}=large")) == [large]
    assert ids(list_runs(storage, cluster, "bot", 10, f"{QUEUE} in (small, tiny)")) == [small]
    assert set(ids(list_runs(storage, cluster, None, 10, MODEL))) == {small, large}
    assert list_runs(storage, cluster, "bottle", 10, QUEUE) == []


def test_jobs_of_others_are_not_listed(prepared: Prepared, storage: Storage, cluster: Cluster) -> None:
    del prepared.job["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    assert cluster.create_job(queued(prepared).job)
    assert list_runs(storage, cluster, None, 10) == []


@dataclass
class Counting:
    """A store that remembers the documents that it was asked for."""

    storage: Storage
    read: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def get(self, key: str) -> Any:
        self.read.append(key)
        return self.storage.get(key)


def test_only_the_rows_that_are_shown_are_read(
    launched: MakeRun, storage: Storage, cluster: Cluster, api: FaultyApi
) -> None:
    for day in range(1, 10):
        index(storage, "bot", f"2020010{day}T000000Z")
    runs = {launched(number) for number in range(1, 4)}
    counting = Counting(storage)
    through = Cluster.connect(str(api.kubeconfig), namespace=cluster.namespace)
    shown = ids(list_runs(cast(Storage, counting), through, None, 2))
    assert len(shown) == 2
    assert set(shown) < runs
    assert {key.split("/")[1] for key in counting.read} == set(shown)
    assert (api.count("GET", r"/jobs\?"), api.count("GET", r"/pods\?"), api.count("GET", "/jobs/")) == (1, 1, 2)
    assert len(api.seen) == 4


def at(later: timedelta) -> Fault:
    """The API server's clock has gone on."""

    def fault(request: Request, send: Send) -> Answer:
        answer = send(request)
        date = format_datetime(parsedate_to_datetime(answer.headers["date"]) + later, usegmt=True)
        return replace(answer, headers={**answer.headers, "date": date})

    return fault


def test_every_run_that_is_pending_for_long_is_told_also_where_it_is_not_shown(
    launched: MakeRun, prepared: Prepared, storage: Storage, cluster: Cluster, api: FaultyApi
) -> None:
    launch(prepared, storage, cluster)
    until(lambda: list(cluster.pending_pods()))
    time.sleep(1)  # a Job's age is told in whole seconds
    newer = launched(2)  # and queued: that is no such time
    through = Cluster.connect(str(api.kubeconfig), namespace=cluster.namespace)
    told: list[str] = []
    assert ids(list_runs(storage, through, None, 1, on_overdue=told.append)) == [newer]
    assert told == []
    api.faults = [at(timedelta(minutes=31))]
    assert ids(list_runs(storage, through, None, 1, on_overdue=told.append)) == [newer]
    assert told == [prepared.run_id]
    list_runs(storage, through, None, 1, f"{MODEL}=another", on_overdue=told.append)
    assert told == [prepared.run_id], "of the runs that were asked for"


def test_each_form_of_the_answer(terminal: Terminal, launched: MakeRun, storage: Storage) -> None:
    old, run_id = index(storage, "bot", "20200102T000000Z"), launched(1)
    assert terminal.run("list", "-o", "name").stdout.split() == [run_id, old]
    told = terminal.run("list", "-o", "json")
    lines = [RunLine.model_validate_json(json.dumps(line)) for line in json.loads(told.stdout)]
    assert (ids(lines), lines[0].status.phase, lines[0].name) == ([run_id, old], Phase.QUEUED, "bot")
    assert yaml.safe_load(terminal.run("list", "-o", "yaml").stdout) == json.loads(told.stdout)
    header, newest, _ = terminal.run("list").stdout.splitlines()
    assert (header.split(), newest.split()[:2]) == (["RUN", "PHASE", "STEP", "LOSS", "AGE"], [run_id, "Queued"])
    header, newest, _ = terminal.run("list", "-o", "wide").stdout.splitlines()
    assert header.split()[-3:] == ["ATTEMPT", "REASON", "MESSAGE"]
    assert newest.endswith("Suspended  its Job is suspended")
    assert terminal.run("list", "nobody").stdout == "no runs\n"


def test_the_store_alone_is_listed_where_there_is_no_cluster(terminal: Terminal, storage: Storage) -> None:
    result = publish(run_of(storage, "bot-0123456789"))
    terminal.cluster, terminal.environment["KUBECONFIG"] = [], "/nowhere"
    told = terminal.run("list", "bot", "-o", "json")
    assert told.returncode == 0, told.stderr
    [line] = json.loads(told.stdout)
    assert (line["status"]["run_id"], line["status"]["loss"]) == ("bot-0123456789", result.train.train_loss)
    refused = terminal.run("list", "-l", "team=vision")
    assert (refused.returncode, "--kubeconfig" in refused.stderr) == (64, True), "labels are those of Jobs"
    refused = terminal.run("list", "--kubeconfig", "/elsewhere")
    assert (refused.returncode, "/elsewhere" in refused.stderr) == (64, True), "whoever names a cluster wants its runs"
