"""Answers as a person reads them in a terminal or a pipe: plain columns, as kubectl's. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from launcher.doctor import Check
from launcher.listing import RunLine
from launcher.scheduling import ScheduleLine
from launcher.status import Phase, RunStatus


def columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns, as wide as their widest cell."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def status_line(status: RunStatus) -> str:
    """A status in one line."""
    stage = f" {status.stage}" if status.stage and status.phase == Phase.RUNNING else ""
    progress = f" step {status.step}/{status.of}" if status.step is not None else ""
    loss = f" loss {status.loss:.3f}" if status.loss is not None else ""
    eta = f" ETA {span(timedelta(seconds=status.eta_seconds))}" if status.eta_seconds is not None else ""
    return f"{status.run_id}  {status.phase}{stage}{progress}{loss}{eta}  {status.message}"


def runs_table(lines: Sequence[RunLine], now: datetime, wide: bool) -> str:
    """Runs, one a row."""
    header = ["RUN", "PHASE", "STEP", "LOSS", "AGE", *(["ATTEMPT", "REASON", "MESSAGE"] if wide else [])]
    return columns(header, [_run_row(line, now, wide) for line in lines])


def _run_row(line: RunLine, now: datetime, wide: bool) -> list[str]:
    status = line.status
    step = f"{status.step}/{status.of}" if status.step is not None else ""
    loss = f"{status.loss:.3f}" if status.loss is not None else ""
    row = [status.run_id, status.phase, step, loss, span(now - line.since)]
    return [*row, str(status.attempt or ""), status.reason, status.message] if wide else row


def schedules_table(lines: Sequence[ScheduleLine], now: datetime) -> str:
    """Schedules, one a row."""
    rows = [
        [
            line.name,
            line.cron,
            line.time_zone,
            f"in {span(line.next - now)}" if line.next else "suspended" if line.suspended else "",
            f"{span(now - line.last_succeeded)} ago" if line.last_succeeded else "never",
            ",".join(line.active),
            line.stuck or "",
        ]
        for line in lines
    ]
    return columns(["NAME", "CRON", "TIME ZONE", "NEXT", "SUCCEEDED", "ACTIVE", "STUCK"], rows)


def checks_table(checks: Sequence[Check]) -> str:
    """What was looked at, one a row, and of each that failed what to do."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    rows = [
        [marks[check.ok], check.name, ". ".join(filter(None, (check.message.rstrip("."), check.resolution)))]
        for check in checks
    ]
    return columns(["", "CHECK", ""], rows)


def span(length: timedelta) -> str:
    """A length of time in its two largest units, as in `3d4h` or `12m5s`."""
    seconds = max(0, round(length.total_seconds()))
    units = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s")]
    first = next((place for place, (count, _) in enumerate(units) if count), 3)
    return "".join(f"{count}{unit}" for count, unit in units[first : first + 2] if count) or "0s"
