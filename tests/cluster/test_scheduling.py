"""Nights on a real API server, started by the real CronJob controller."""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from examples.cluster.control_plane import ControlPlane
from job.contract.errors import ConfigError, NoInputError, TakenError
from job.contract.keys import config_key
from job.run import identify
from job.settings import read_settings
from job.storage import Storage
from job.supervisor import read_config
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.launching import Prepared
from launcher.manifest import SELECTOR, Manifest, env_of, image_of
from launcher.scheduling import CONFIG_URI, Scheduled, night_name, schedule, schedules, unschedule
from tests.cluster.conftest import until

KUBECTL = Path(sys.executable).with_name("kubectl")
T = TypeVar("T")
Nightly = Callable[..., Scheduled]


@pytest.fixture
def nightly(config_file: Path, template: Manifest, storage: Storage, cluster: Cluster) -> Nightly:
    """Schedules the config as it is now."""

    def make(cron: str = "17 2 * * *", zone: str = "Etc/UTC", dry_run: bool = False) -> Scheduled:
        body = config_file.read_bytes()
        return schedule(body, str(config_file), template, storage, cluster, cron, zone, "ada", dry_run)

    return make


def nights(cluster: Cluster) -> list[str]:
    return [metadata["name"] for metadata in cluster.job_metadata(SELECTOR)]


def patch(cluster: Cluster, path: str, change: Json) -> None:
    full = f"/apis/batch/v1/namespaces/{cluster.namespace}/cronjobs/{path}"
    assert cluster.api.send("PATCH", full, body=change, content_type="application/merge-patch+json").status == 200


def test_a_scheduled_config_has_its_cronjob(
    nightly: Nightly, config_file: Path, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    scheduled = nightly()
    assert (scheduled.name, scheduled.created, len(scheduled.next_times)) == ("bot", True, 5)
    cronjob = cluster.get_cronjob("bot")
    assert cronjob
    uri = cronjob["metadata"]["annotations"][CONFIG_URI]
    kept = storage.get(uri.removeprefix(f"{storage.uri}/"))
    assert kept
    assert kept[0] == config_file.read_bytes()
    made = cronjob["spec"]["jobTemplate"]
    assert env_of(made, "FINETUNE_CONFIG") == uri
    assert env_of(made, "FINETUNE_IMAGE") == image_of(template)
    [line] = schedules(cluster)
    assert (line.name, line.next, line.stuck) == ("bot", scheduled.next_times[0], None)


def test_a_night_freezes_the_spec_that_a_launch_does(
    nightly: Nightly, prepared: Prepared, storage: Storage, cluster: Cluster
) -> None:
    """So one on which config, data, base and image are those of the newest run ends in seconds."""
    nightly()
    cronjob = cluster.get_cronjob("bot")
    assert cronjob
    variables = ("FINETUNE_CONFIG", "FINETUNE_RUNS", "FINETUNE_IMAGE")
    told = {name: env_of(cronjob["spec"]["jobTemplate"], name) or "" for name in variables}
    settings = read_settings([], told | {"FINETUNE_RUN_ID": "bot-29873777"})
    config, _ = read_config(settings.config)
    run = identify(config, storage, settings)
    assert (run.run_id, run.spec_sha256) == ("bot-29873777", prepared.spec_sha256)


def test_a_changed_config_changes_the_schedule_in_place(
    nightly: Nightly, config_file: Path, storage: Storage, cluster: Cluster
) -> None:
    nightly()
    before = cluster.get_cronjob("bot")
    assert not nightly().created
    assert before
    again = cluster.get_cronjob("bot")
    assert again
    assert again["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "the same is no change"
    patch(cluster, "bot", {"spec": {"suspend": True}})
    config_file.write_text(config_file.read_text().replace('"max_steps": 1', '"max_steps": 2'))
    nightly("0 3 * * *")
    after = cluster.get_cronjob("bot")
    assert after
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert (after["spec"]["schedule"], after["spec"]["suspend"]) == ("0 3 * * *", True), "suspended by somebody else"
    assert (env_of(after["spec"]["jobTemplate"], "FINETUNE_CONFIG") or "").endswith(
        config_key(config_file.read_bytes())
    )


def test_a_dry_run_tells_the_times_and_writes_nothing(nightly: Nightly, storage: Storage, cluster: Cluster) -> None:
    assert len(nightly(dry_run=True).next_times) == 5
    assert (cluster.cronjobs(SELECTOR), nights(cluster), list(storage.list(""))) == ([], [], [])


def test_a_misspelt_field_is_named_and_nothing_is_scheduled(
    nightly: Nightly, template: Manifest, cluster: Cluster
) -> None:
    template["spec"]["activeDeadlineSecond"] = 60
    with pytest.raises(ConfigError, match="activeDeadlineSecond"):
        nightly()
    assert cluster.cronjobs(SELECTOR) == []


def test_a_weakened_template_is_refused_before_there_is_a_cronjob(
    nightly: Nightly, template: Manifest, storage: Storage, cluster: Cluster
) -> None:
    template["spec"]["template"]["spec"]["hostNetwork"] = True
    with pytest.raises(ConfigError, match="hostNetwork"):
        nightly()
    assert (cluster.cronjobs(SELECTOR), nights(cluster), list(storage.list(""))) == ([], [], [])


def test_what_another_manager_owns_is_left_and_named(nightly: Nightly, cluster: Cluster) -> None:
    nightly()
    patch(cluster, "bot?fieldManager=kubectl-edit", {"spec": {"schedule": "0 5 * * *"}})
    with pytest.raises(ConfigError, match="kubectl-edit"):
        nightly("0 3 * * *")
    assert [line.cron for line in schedules(cluster)] == ["0 5 * * *"]


def test_a_cronjob_that_the_launcher_did_not_make_is_left_alone(nightly: Nightly, cluster: Cluster) -> None:
    nightly()
    patch(cluster, "bot", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}})
    with pytest.raises(TakenError, match="not made by the launcher"):
        nightly("0 3 * * *")
    with pytest.raises(NoInputError, match="no schedule bot"):
        unschedule("bot", cluster)
    assert cluster.get_cronjob("bot")


def test_a_removed_schedule_leaves_its_night(nightly: Nightly, plane: ControlPlane, cluster: Cluster) -> None:
    nightly()
    kubectl(plane, cluster, "create", "job", "--from=cronjob/bot", "by-hand")
    unschedule("bot", cluster)
    until(lambda: not schedules(cluster))
    assert nights(cluster) == ["by-hand"]
    with pytest.raises(NoInputError, match="no schedule bot"):
        unschedule("bot", cluster)


def test_a_night_by_hand_has_the_run_id_of_its_own_name(
    nightly: Nightly, plane: ControlPlane, cluster: Cluster
) -> None:
    nightly()
    kubectl(plane, cluster, "create", "job", "--from=cronjob/bot", "by-hand")
    check_run_id("by-hand", cluster)


def kubectl(plane: ControlPlane, cluster: Cluster, *words: str) -> None:
    access = ["--kubeconfig", str(plane.kubeconfig()), "-n", cluster.namespace]
    subprocess.run([KUBECTL, *access, *words], check=True, capture_output=True)


def check_run_id(name: str, cluster: Cluster) -> None:
    """The pod of a Job gets its run id from a label that holds the Job's name."""
    job = cluster.get_job(name)
    assert job
    [pod] = until(lambda: cluster.pods(job["metadata"]["uid"]))
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == name
    [run_id] = [entry for entry in pod["spec"]["containers"][0]["env"] if entry["name"] == "FINETUNE_RUN_ID"]
    assert run_id["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['batch.kubernetes.io/job-name']"


def test_promise_56_a_schedule_that_goes_on_after_missed_nights_starts_at_most_one(
    nightly: Nightly, cluster: Cluster
) -> None:
    nightly("*/10 * * * *")
    patch(cluster, "bot", {"spec": {"suspend": True}})
    long_ago = f"{datetime.now(UTC) - timedelta(days=2):%Y-%m-%dT%H:%M:00Z}"
    patch(cluster, "bot/status", {"status": {"lastScheduleTime": long_ago}})
    patch(cluster, "bot", {"spec": {"suspend": False}})
    [first] = until(lambda: nights(cluster))
    time.sleep(5)
    assert nights(cluster) == [first], "the newest of 288 nights, and no other"
    [line] = schedules(cluster)
    assert line.last_scheduled
    assert first == night_name("bot", line.last_scheduled)
    assert timedelta() <= datetime.now(UTC) - line.last_scheduled < timedelta(minutes=11)


def test_promise_55_nights_never_overlap_and_one_that_is_stuck_is_explained(
    nightly: Nightly, plane: ControlPlane, cluster: Cluster
) -> None:
    """Two real minutes: no node takes the first night's pod, and the controllers are killed before the second."""
    nightly("* * * * *")
    [first] = until(lambda: nights(cluster))
    [line] = until(lambda: [line for line in schedules(cluster) if line.active])
    assert (line.active, line.stuck) == ((first,), None)
    assert line.last_scheduled
    assert first == night_name("bot", line.last_scheduled)
    check_run_id(first, cluster)
    plane.kill("controllers")
    plane.start("controllers")
    cronjob = cluster.get_cronjob("bot")
    assert cronjob
    held = until(
        lambda: [
            event for event in cluster.events(cronjob["metadata"]["uid"]) if event["reason"] == "JobAlreadyActive"
        ],
        90,
    )
    assert "Forbid" in held[-1]["message"]
    assert nights(cluster) == [first]
    [line] = schedules(cluster)
    assert line.stuck
    assert f"{first} has not ended, and holds back the nights since" in line.stuck
    # What it advises: the stuck night ended, the one that was held back starts.
    job = cluster.get_job(first)
    assert job
    assert cluster.delete_job(first, job["metadata"]["uid"])
    [second] = until(lambda: [name for name in nights(cluster) if name != first])
    assert second > first
