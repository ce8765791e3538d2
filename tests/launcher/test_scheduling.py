"""A night's CronJob, its times, and how a schedule is."""

import copy
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.errors import ConfigError
from job.contract.keys import is_run_id
from launcher.cron import check_cron
from launcher.kube import Json
from launcher.manifest import SPEC_SHA256, Manifest, build_job, env_of, image_of
from launcher.scheduling import (
    CONFIG_URI,
    build_cronjob,
    job_of,
    night_name,
    read_schedule,
)
from tests.launcher.runs import submission

NOW = datetime(2026, 10, 23, 12, tzinfo=UTC)
NAME = st.from_regex(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", fullmatch=True)
"""What a config takes as its name, which Kubernetes takes as a CronJob's."""


def nights(template: Manifest, **compute: Any) -> Manifest:
    """The CronJob of a config that asks for so much."""
    return build_cronjob(template, submission(**compute), "17 2 * * *", "Etc/UTC")


# Names


@given(NAME, st.datetimes(datetime(2020, 1, 1), datetime(2150, 1, 1)))
def test_a_nights_name_is_a_run_id(name: str, time: datetime) -> None:
    assert is_run_id(night_name(name, time.replace(tzinfo=UTC)))


# The CronJob


def test_a_night_is_the_job_of_a_launch_but_for_what_differs_on_purpose(template: Manifest) -> None:
    launched = build_job(template, submission(cpus=2.5, gpus=2, queue="gpu"), "bot", "a" * 64)
    before = copy.deepcopy(template)
    cronjob = nights(template, cpus=2.5, gpus=2, queue="gpu")
    assert template == before
    made = cronjob["spec"]["jobTemplate"]
    assert SPEC_SHA256 not in made["metadata"]["annotations"], "a night freezes its own spec"
    assert made["metadata"]["labels"] == launched["metadata"]["labels"]
    assert made["spec"] == launched["spec"]


def test_promise_55_no_two_nights_at_once_and_none_longer_than_a_day(template: Manifest) -> None:
    spec = nights(template, max_hours=23.5)["spec"]
    assert (spec["concurrencyPolicy"], spec["startingDeadlineSeconds"]) == ("Forbid", 7200)
    assert (spec["schedule"], spec["timeZone"]) == ("17 2 * * *", "Etc/UTC")
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 23 * 3600
    assert nights(template, max_hours=2)["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 7200
    with pytest.raises(ConfigError, match=r"compute\.max_hours is 24"):
        nights(template, max_hours=24)


def test_a_cronjob_tells_its_config_and_who_made_it(template: Manifest) -> None:
    metadata = nights(template)["metadata"]
    assert metadata["annotations"][CONFIG_URI] == "s3://b/configs/c.yaml"
    assert metadata["annotations"]["finetune.local/submitter"] == "ada"
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "finetune-launcher"
    assert metadata["name"] == metadata["labels"]["app.kubernetes.io/instance"] == "bot"


def test_a_night_names_its_image_as_a_launch_does(template: Manifest) -> None:
    job = job_of(nights(template), NOW)
    assert env_of(job, "FINETUNE_IMAGE") == image_of(template)
    assert job["metadata"]["name"] == f"bot-{int(NOW.timestamp()) // 60}"


def test_a_night_keeps_to_the_sites_ceilings(template: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"compute\.gpus is 9, at most 8"):
        nights(template, gpus=9)


# Times


def test_the_next_five_times_are_told_in_their_zone() -> None:
    times = check_cron("17 4 * * *", "Europe/Berlin", NOW)
    assert [f"{time:%m-%d %H:%M %z}" for time in times] == [
        "10-24 04:17 +0200",
        "10-25 04:17 +0100",
        "10-26 04:17 +0100",
        "10-27 04:17 +0100",
        "10-28 04:17 +0100",
    ]


@pytest.mark.parametrize("zone", ["Etc/UTC", "Europe/Berlin"])
@pytest.mark.parametrize("start", [NOW, datetime(2027, 3, 26, 12, tzinfo=UTC)])
def test_promise_55_each_day_has_one_night_whatever_the_clocks_do(zone: str, start: datetime) -> None:
    times = check_cron("17 4 * * *", zone, start)
    assert {later.date() - earlier.date() for earlier, later in pairwise(times)} == {timedelta(days=1)}


@pytest.mark.parametrize(
    ("start", "words"),
    [(NOW, "2026-10-25 .* starts it twice"), (datetime(2027, 3, 26, 12, tzinfo=UTC), "2027-03-28 .* skips it")],
)
def test_promise_55_a_time_that_the_clocks_skip_or_repeat_is_refused(start: datetime, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        check_cron("17 2 * * *", "Europe/Berlin", start)
    assert "Etc/UTC" in raised.value.resolution
    assert len(check_cron("17 2 * * *", "Etc/UTC", start)) == 5
    assert len(check_cron("17 2 * * mon", "Europe/Berlin", start)) == 5, "clocks change on Sundays"
    assert len(check_cron("17 * * * *", "Europe/Berlin", start)) == 5, "an interval has no time of the day"


@pytest.mark.parametrize(
    ("macro", "first"),
    [
        ("@hourly", datetime(2026, 10, 23, 13)),
        ("@daily", datetime(2026, 10, 24)),
        ("@weekly", datetime(2026, 10, 25)),
        ("@monthly", datetime(2026, 11, 1)),
        ("@yearly", datetime(2027, 1, 1)),
    ],
)
def test_a_macro_is_taken(macro: str, first: datetime) -> None:
    assert check_cron(macro, "Etc/UTC", NOW)[0] == first.replace(tzinfo=ZoneInfo("Etc/UTC"))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("17 2 * *", "five fields"),
        ("0 17 2 * * *", "five fields"),
        ("", "five fields"),
        ("@reboot", "five fields"),
        ("@every 1h", "five fields"),
        ("TZ=Europe/Berlin 17 2 * * *", "names its time zone"),
        ("CRON_TZ=Europe/Berlin 17 2 * * *", "names its time zone"),
        ("60 2 * * *", "Bad minute"),
        ("17 24 * * *", "Bad hour"),
        ("17 2 31 2 *", "Bad day-of-month"),
        ("17 2 L * *", "'L' is no"),
        ("17 2 * * 5#2", "'5#2' is no"),
        ("17 2 * * 7", "Sunday is 0"),
        ("17 2 */2 * 1", "crons differ"),
        ("17 4-4/2 * * *", "'4-4/2' is no"),
        ("17 ٢ * * *", "'٢' is no"),
    ],
)
def test_what_kubernetes_reads_otherwise_or_not_at_all_is_refused(expression: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_cron(expression, "Etc/UTC", NOW)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "Europe", "../etc/passwd", "/etc/localtime", "Local"])
def test_a_zone_that_there_is_not_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match="no time zone"):
        check_cron("17 2 * * *", zone, NOW)


# How it is


def standing(active: tuple[str, ...] = (), **changed: Any) -> Json:
    """A CronJob of `17 2 * * *` as the API server tells it at `NOW`: it went well last night."""
    status = {"lastScheduleTime": "2026-10-23T02:17:00Z", "lastSuccessfulTime": "2026-10-23T05:00:00Z"}
    status |= {key: changed.pop(key) for key in tuple(changed) if key in status}
    return {
        "metadata": {"name": "bot", "creationTimestamp": "2026-10-01T00:00:00Z"},
        "spec": {"schedule": "17 2 * * *", "timeZone": "Etc/UTC", "suspend": False} | changed,
        "status": {key: value for key, value in status.items() if value} | {"active": [{"name": n} for n in active]},
    }


def test_a_schedule_tells_its_nights() -> None:
    line = read_schedule(standing(), [], NOW)
    assert (line.name, line.cron, line.time_zone, line.suspended) == ("bot", "17 2 * * *", "Etc/UTC", False)
    assert line.next == datetime(2026, 10, 24, 2, 17, tzinfo=UTC)
    assert line.last_scheduled == datetime(2026, 10, 23, 2, 17, tzinfo=UTC)
    assert line.last_succeeded == datetime(2026, 10, 23, 5, tzinfo=UTC)
    assert (line.active, line.stuck) == ((), None)


def test_promise_55_a_night_that_outlasts_its_time_is_explained() -> None:
    cronjob = standing(("bot-29873777",))
    assert read_schedule(cronjob, [], NOW).stuck is None, "it may run until the next one is due"
    stuck = read_schedule(cronjob, [], NOW + timedelta(days=1)).stuck
    assert stuck
    for words in ("bot-29873777 has not ended", "since 2026-10-24 02:17 UTC", "finetune cancel bot-29873777"):
        assert words in stuck


def test_promise_55_a_night_that_was_not_started_is_told_in_the_controllers_words() -> None:
    failed = {"reason": "FailedCreate", "message": "Error creating job: exceeded quota"}
    made = {"reason": "SuccessfulCreate", "message": "Created job bot-29873777"}
    by_hand = {"reason": "UnexpectedJob", "message": "Saw a job that the controller did not create"}
    stuck = read_schedule(standing(), [made, failed, by_hand], NOW).stuck
    assert stuck == "no night was started: Error creating job: exceeded quota"
    assert read_schedule(standing(), [failed, made, by_hand], NOW).stuck is None, "the next try did it"


def test_promise_55_nights_that_fail_one_after_the_other_are_told() -> None:
    assert read_schedule(standing(lastSuccessfulTime="2026-10-22T05:00:00Z"), [], NOW).stuck is None
    failing = standing(lastSuccessfulTime="2026-10-21T05:00:00Z")
    stuck = read_schedule(failing, [], NOW).stuck
    assert stuck
    assert "no night has succeeded since 2026-10-21 05:00 UTC" in stuck
    assert f"finetune status {night_name('bot', datetime(2026, 10, 23, 2, 17, tzinfo=UTC))}" in stuck
    running = standing(("bot-29873777",), lastSuccessfulTime="2026-10-21T05:00:00Z")
    assert read_schedule(running, [], NOW).stuck is None, "tonight's may succeed yet"


def test_a_new_schedule_is_not_stuck() -> None:
    new = standing(lastScheduleTime=None, lastSuccessfulTime=None)
    new["metadata"]["creationTimestamp"] = "2026-10-22T12:00:00Z"
    assert read_schedule(new, [], NOW).stuck is None
    stuck = read_schedule(new, [], NOW + timedelta(days=1)).stuck
    assert stuck == "no night has succeeded since 2026-10-22 12:00 UTC"


def test_a_suspended_schedule_has_no_next_time_and_is_not_stuck() -> None:
    line = read_schedule(standing(suspend=True, lastSuccessfulTime="2026-10-01T05:00:00Z"), [], NOW)
    assert (line.suspended, line.next, line.stuck) == (True, None, None)


def test_times_that_were_edited_by_hand_do_not_hide_the_schedule() -> None:
    line = read_schedule(standing(schedule="@every 1h"), [], NOW)
    assert line.cron == "@every 1h"
    assert line.stuck
    assert "'@every 1h'" in line.stuck
