"""Nights: a config as a CronJob, and how the CronJobs of a namespace are.

A night is a Job like any other but for its name, which Kubernetes makes of the CronJob's and the time; with it comes the
run id. Its first attempt freezes the spec.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

from job.contract.config_file import parse_config
from job.contract.errors import ConfigError, NoInputError, TakenError
from job.contract.keys import config_key
from job.contract.model import Document
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.cron import DEFAULT_ZONE, check_cron, slots
from launcher.evidence import moment, one_more_night
from launcher.kube import Json
from launcher.manifest import PREFIX, SELECTOR, Manifest, Submission, fill, is_ours, submission_of

CONFIG_URI = f"{PREFIX}config-uri"
"""The annotation that names a schedule's config."""

_NIGHT_HOURS = 23  # a night that is stuck ends before the next one of a daily schedule
_STARTING_DEADLINE_SECONDS = 7200
_STARTED = "SuccessfulCreate"
# Reasons of the CronJob controller's events that mean: no night was started.
_NOT_STARTED = frozenset({"FailedCreate", "InvalidSchedule", "UnknownTimeZone", "UnparseableSchedule"})


@dataclass(frozen=True)
class Scheduled:
    """What a schedule came to."""

    name: str
    created: bool
    """Whether there was none of that name before."""
    next_times: tuple[datetime, ...]


class ScheduleLine(Document):
    """A schedule as the cluster has it."""

    schema_version: Literal[1] = 1
    name: str
    cron: str
    time_zone: str
    suspended: bool
    last_scheduled: datetime | None
    """The newest time at which a night was started."""
    last_succeeded: datetime | None
    """When the newest night that succeeded ended."""
    active: tuple[str, ...]
    """The run ids of nights that have not ended."""
    next: datetime | None
    """Null while it is suspended."""
    stuck: str | None
    """Why the next night cannot start, or that no night succeeds any more; null when all is well."""


def schedule(
    config_bytes: bytes,
    source: str,
    template: Manifest,
    storage: Storage,
    cluster: Cluster,
    cron: str,
    time_zone: str,
    submitter: str,
    dry_run: bool = False,
) -> Scheduled:
    """Makes a config a CronJob, or changes the one that the name of its model line has.

    Args:
        config_bytes: the config file's.
        source: its name, for messages.
        template: the site's Job template.
        storage: the root of runs; gets the config.
        cluster: where the CronJob goes.
        cron: the times, see `check_cron`.
        time_zone: of these times, such as `Etc/UTC`.
        submitter: who schedules, for the record.
        dry_run: let the API server judge it; write nothing.

    Raises:
        ConfigError: the config, the template or the times cannot be used, or the cluster refuses the Job or the
            CronJob, in its own words.
        TakenError: a CronJob of that name is not ours.
        UnavailableError: the store or the API server cannot be reached.
    """
    config = parse_config(config_bytes, source)
    times = check_cron(cron, time_zone, datetime.now(UTC))
    cronjob = build_cronjob(template, submission_of(config, config_bytes, storage.uri, submitter), cron, time_zone)
    standing = cluster.get_cronjob(config.name)
    if standing and not is_ours(standing):
        raise TakenError(
            f"the CronJob {config.name} was not made by the launcher", "Give this config another name, or delete it."
        )
    # What a policy or PodSecurity has against a night is heard now, and not by nobody at its time.
    cluster.create_job(job_of(cronjob, times[0]), dry_run=True)
    if not dry_run:
        storage.put_if_absent(config_key(config_bytes), config_bytes)
    cluster.apply_cronjob(cronjob, dry_run)
    return Scheduled(config.name, standing is None, tuple(times))


def unschedule(name: str, cluster: Cluster) -> None:
    """Removes a schedule. A night that runs goes on.

    Raises:
        NoInputError: the launcher made none of that name.
    """
    found = cluster.get_cronjob(name)
    if found is None or not is_ours(found) or not cluster.delete_cronjob(name, found["metadata"]["uid"]):
        raise NoInputError(f"there is no schedule {name} in {cluster.namespace}", "A schedule has its config's name.")


def schedules(cluster: Cluster) -> list[ScheduleLine]:
    """The schedules of a namespace, and whether their nights come and go."""
    return [
        read_schedule(cronjob, cluster.events(cronjob["metadata"]["uid"]), datetime.now(UTC))
        for cronjob in cluster.cronjobs(SELECTOR)
    ]


def night_name(name: str, time: datetime) -> str:
    """The name that Kubernetes gives the Job of a schedule at one of its times, and so the night's run id."""
    return f"{name}-{int(time.timestamp()) // 60}"


def build_cronjob(template: Manifest, submission: Submission, cron: str, time_zone: str) -> Manifest:
    """The CronJob that is sent, of the model line's name; the template is left as it is. Pure.

    Raises:
        ConfigError: the config asks for more than the template's ceilings or for a day and more, or the template lacks
            a part.
    """
    if submission.compute.max_hours >= 24:
        raise ConfigError(
            f"compute.max_hours is {submission.compute.max_hours:g}, and a night has less than 24",
            "Lower compute.max_hours, or launch this config by hand.",
        )
    job = fill(template, submission, submission.model)  # 52 characters at most: Kubernetes adds a dash and the time
    metadata, spec = job["metadata"], job["spec"]
    spec["activeDeadlineSeconds"] = min(spec["activeDeadlineSeconds"], _NIGHT_HOURS * 3600)
    return {
        "apiVersion": job["apiVersion"],
        "kind": "CronJob",
        "metadata": metadata | {"annotations": metadata["annotations"] | {CONFIG_URI: submission.config_uri}},
        "spec": {
            "schedule": cron,
            "timeZone": time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _STARTING_DEADLINE_SECONDS,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 7,
            "jobTemplate": {
                "metadata": {"labels": dict(metadata["labels"]), "annotations": dict(metadata["annotations"])},
                "spec": spec,
            },
        },
    }


def job_of(cronjob: Manifest, time: datetime) -> Manifest:
    """The Job that a CronJob makes at one of its times."""
    made, name = cronjob["spec"]["jobTemplate"], night_name(cronjob["metadata"]["name"], time)
    return {
        "apiVersion": cronjob["apiVersion"],
        "kind": "Job",
        "metadata": made["metadata"] | {"name": name},
        "spec": made["spec"],
    }


def read_schedule(cronjob: Json, events: Sequence[Json], now: datetime) -> ScheduleLine:
    """How a schedule is. Pure.

    Args:
        cronjob: as the API server tells it.
        events: its own, oldest first.
        now: the present time.
    """
    spec, status = cronjob["spec"], cronjob.get("status", {})
    suspended, zone = spec.get("suspend", False), spec.get("timeZone", DEFAULT_ZONE)
    try:
        following = None if suspended else next(slots(spec["schedule"], zone, now))
        stuck = _stuck(cronjob, events, now)
    except ConfigError as error:  # it was edited by hand
        following, stuck = None, error.message
    return ScheduleLine(
        name=cronjob["metadata"]["name"],
        cron=spec["schedule"],
        time_zone=zone,
        suspended=suspended,
        last_scheduled=moment(status.get("lastScheduleTime")),
        last_succeeded=moment(status.get("lastSuccessfulTime")),
        active=tuple(each["name"] for each in status.get("active", ())),
        next=following,
        stuck=stuck,
    )


def _stuck(cronjob: Json, events: Sequence[Json], now: datetime) -> str | None:
    """The first of these that holds: a night outlasts its time, none was started, or two in a row have not succeeded."""
    name, spec, status = cronjob["metadata"]["name"], cronjob["spec"], cronjob.get("status", {})
    cron, zone = spec["schedule"], spec.get("timeZone", DEFAULT_ZONE)
    active, started = status.get("active"), moment(status.get("lastScheduleTime"))
    if active and started and (held := next(slots(cron, zone, started))) <= now:
        run = active[0]["name"]
        return (
            f"{run} has not ended, and holds back the nights since {_told(held)}: "
            f"`finetune status {run}` says why, `finetune cancel {run}` lets the next one start"
        )
    if spec.get("suspend"):
        return None
    decisive = [event for event in events if event["reason"] in _NOT_STARTED | {_STARTED}]
    if decisive and decisive[-1]["reason"] != _STARTED:
        return f"no night was started: {decisive[-1]['message']}"
    since = moment(status.get("lastSuccessfulTime") or cronjob["metadata"]["creationTimestamp"])
    ended = list(islice(slots(cron, zone, started if active and started else now, reverse=True), 2))
    if since and len(ended) == 2 and ended[-1] > since:
        # Not `launch --resume`: a night's run id is its Job's name, which no config gives.
        once_more = f"`{one_more_night(name)}` trains once more before the next night"
        night = night_name(name, started) if started else ""
        last = f": `finetune status {night}` says how the last one is, {once_more}" if started else ""
        return f"no night has succeeded since {_told(since)}{last}"
    return None


def _told(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M %Z}"
