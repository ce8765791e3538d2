"""What the launcher promises of runs on a real node, by pods that need not train: image/ has the one that does."""

import json
import os
import subprocess
import sys
from pathlib import Path

from examples.cluster.site import NAMESPACE
from job.contract.keys import RunKeys
from job.storage.opening import open_storage
from launcher.log_lines import LogLine
from tests.cluster.conftest import SECONDS
from tests.cluster.node.conftest import Bench, Site

KUBECTL = Path(sys.executable).with_name("kubectl")


def test_a_gpu_is_given_to_the_pod_that_asks_for_one(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config(compute={"gpus": 1, "gpu_memory_gib": 15})).run_id
    ended = launcher.wait(run, timeout=SECONDS)
    assert ended.phase == "Succeeded", ended
    [device] = [line for line in map(_event, launcher.logs(run)) if line.get("event") == "device"]
    assert device["names"] == ["pretended T4"]


def test_promise_60_the_launchers_role_is_enough_for_all_verbs(bench: Bench, site: Site) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:finetune-launcher"
    manager = bench.launcher(impersonate=account)
    manager.cluster = manager.cluster.__class__(manager.cluster.api, NAMESPACE)
    run = manager.launch(bench.config()).run_id
    assert manager.wait(run, timeout=SECONDS).phase == "Succeeded"
    assert any(isinstance(line, LogLine) for line in manager.logs(run))
    assert manager.why(run) is None
    assert run in {line.status.run_id for line in manager.list()}
    assert manager.schedule(bench.config(name="night"), "17 2 * * *").created
    assert [line.name for line in manager.schedules()] == ["night"]
    manager.unschedule("night")
    slow = manager.launch(bench.config("seconds 0.5", name="slow", training={"max_steps": 200})).run_id
    assert manager.cancel(slow).by == "ada"
    assert manager.status(slow).phase == "Cancelled"


def test_a_night_that_finds_nothing_changed_trains_nothing(bench: Bench, site: Site) -> None:
    launcher = bench.launcher()
    launcher.schedule(bench.config(), "17 2 * * *")
    for number, name in enumerate(("first", "second")):
        create = ["create", "job", "--from=cronjob/bot", name, "-n", bench.cluster.namespace]
        subprocess.run([KUBECTL, *create], env=os.environ | site.environment, check=True, capture_output=True)
        ended = launcher.wait(name, timeout=SECONDS)
        assert (ended.phase, ended.run_id) == ("Succeeded", name)
        found = open_storage(bench.root).get(RunKeys(name).result)
        assert found
        assert json.loads(found[0])["same_as"] == (None, "first")[number]
    [latest] = [line for line in launcher.list("bot") if line.status.run_id == "first"]
    assert latest.name == "bot"


def test_promise_57_a_cancelled_pod_is_told_to_stop_and_leaves_no_result(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config("seconds 0.5", training={"max_steps": 200})).run_id
    for status in launcher.watch(run, timeout=SECONDS):
        if status.stage == "train":
            break
    launcher.cancel(run)
    assert bench.cluster.get_job(run) is None
    keys, storage = RunKeys(run), open_storage(bench.root)
    outcome = storage.get(keys.attempt(1).outcome)
    assert outcome, "the pod had its grace period, and told how it ended"
    assert json.loads(outcome[0])["code"] == 75
    assert storage.head(keys.result) is None
    assert launcher.status(run).phase == "Cancelled"


def test_what_a_pod_leaves_to_freeze_is_frozen_by_its_first_attempt(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config(), freeze_in_pod=True).run_id
    assert open_storage(bench.root).head(RunKeys(run).spec) is None
    assert launcher.wait(run, timeout=SECONDS).phase == "Succeeded"
    spec = open_storage(bench.root).get(RunKeys(run).spec)
    assert spec
    assert json.loads(spec[0])["dataset"]["train"][0]["etag"]


def _event(line: object) -> dict[str, object]:
    try:
        told: dict[str, object] = json.loads(line.text) if isinstance(line, LogLine) else {}
    except ValueError:
        return {}
    return told
