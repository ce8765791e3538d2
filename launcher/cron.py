"""When a schedule's times come: the cron that Kubernetes and the preview read alike."""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from job.contract.errors import ConfigError

DEFAULT_ZONE = "Etc/UTC"

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
_VALUE = r"(?:[0-9]+|[A-Za-z]{3})"
_RANGE = rf"{_VALUE}(?:-{_VALUE})?"
_FIELD = re.compile(rf"\*(?:/[0-9]+)?|{_RANGE}(?:,{_RANGE})*")


def check_cron(expression: str, zone: str, now: datetime) -> list[datetime]:
    """The next five times of a schedule, in its zone.

    Kubernetes goes by the wall clock: it starts no night at a time that the clocks skip, and two at one that they repeat.
    Such a schedule is refused.

    Args:
        expression: five fields, or `@hourly`, `@daily`, `@weekly`, `@monthly` or `@yearly`.
        zone: a name of the tz database.
        now: the present time.

    Raises:
        ConfigError: the expression or the zone is none, or a change of the clocks skips or repeats a night within a year.
    """
    times = list(islice(slots(expression, zone, now), 5))
    fields = _fields(expression)
    if not any(field.startswith("*") for field in fields.split()[:2]):  # else it is an interval, and no time of the day
        _check_clocks(fields, zone, now)
    return times


def slots(expression: str, zone: str, moment: datetime, reverse: bool = False) -> Iterator[datetime]:
    """The times after a moment, or before it, as Kubernetes has them.

    With a field of seconds cronsim goes by the wall clock, as Kubernetes does; without it mends what the clocks change.
    """
    try:
        return CronSim(f"0 {_fields(expression)}", moment.astimezone(_zone(zone)), reverse)
    except CronSimError as error:
        raise _no_schedule(expression, str(error)) from error


def _fields(expression: str) -> str:
    """The five fields of what Kubernetes and cronsim read alike.

    Raises:
        ConfigError: they would not, or one of them reads it not at all.
    """
    if "TZ=" in expression:
        raise ConfigError(f"the schedule {expression!r} names its time zone", "Give the time zone apart from it.")
    fields = _MACROS.get(expression, expression).split()
    if len(fields) != 5:
        raise _no_schedule(expression, f"it has not five fields, and is none of {', '.join(_MACROS)}")
    for field in fields:
        if not _FIELD.fullmatch(field):
            raise _no_schedule(expression, f"{field!r} is no *, */n, or list of numbers, names and ranges")
    day, weekday = fields[2], fields[4]
    if "7" in weekday:
        raise _no_schedule(expression, "Sunday is 0")
    if "*" not in (day, weekday) and "*" in day + weekday:
        raise _no_schedule(expression, "crons differ in how */n in one field of days goes with the other field")
    return " ".join(fields)


def _zone(name: str) -> ZoneInfo:
    with suppress(KeyError, ValueError, OSError):
        return ZoneInfo(name)
    raise ConfigError(f"there is no time zone {name!r}", f"Use a name such as {DEFAULT_ZONE} or Europe/Berlin.")


def _check_clocks(fields: str, zone: str, now: datetime) -> None:
    """Compares the times with those of a cron that has one a day whatever the clocks do."""
    start = now.astimezone(_zone(zone))
    for steady, told in zip(CronSim(fields, start), slots(fields, zone, now), strict=False):
        if steady.astimezone(UTC) != told.astimezone(UTC):
            skipped = told.astimezone(UTC) > steady.astimezone(UTC)
            day, does = (steady, "skips it") if skipped else (told, "starts it twice")
            raise ConfigError(
                f"the schedule {fields!r}: on {day:%Y-%m-%d} the clocks of {zone} change, and Kubernetes {does}",
                f"Choose an hour that the clocks do not skip or repeat, or the time zone {DEFAULT_ZONE}.",
            )
        if told - start > timedelta(days=366):
            return


def _no_schedule(expression: str, why: str) -> ConfigError:
    return ConfigError(
        f"the schedule {expression!r} cannot be used: {why}", "As in `17 2 * * *`: minute, hour, day, month, weekday."
    )
