"""What the command line prints: the answer to stdout, progress and warnings to stderr. With cli.py all that prints."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

# All else is imported where it is needed: `finetune --help` and completion answer at once.
if TYPE_CHECKING:
    from job.contract.model import Document
    from job.storage import Progress
    from launcher.status import RunStatus


def answer(found: "Document | Sequence[Document]", output: str | None, name: str, text: str) -> None:
    """Prints an answer in the form that was asked for."""
    if output in ("json", "yaml"):
        body = (
            [each.model_dump(mode="json") for each in found]
            if isinstance(found, Sequence)
            else found.model_dump(mode="json")
        )
        if output == "json":
            click.echo(json.dumps(body))
            return
        import yaml

        click.echo(yaml.safe_dump(body, sort_keys=False, width=120), nl=False)
        return
    if told := name if output == "name" else text:
        click.echo(told)


def show_status(status: "RunStatus", output: str | None) -> None:
    """Prints how a run is, and where its artifacts are."""
    from launcher.tables import status_line

    line = status_line(status)
    told = f"{line}  {status.resolution}".rstrip() if output == "wide" else line
    answer(status, output, status.run_id, "\n".join((told, *(f"  {uri}" for uri in status.artifacts.values()))))


def say_changes(statuses: "Iterable[RunStatus]", err: bool) -> "RunStatus":
    """A line for each status that differs; the last status. To stderr only what comes before the answer on stdout."""
    from launcher.tables import status_line

    said = None
    for status in statuses:
        if (line := status_line(status)) != said and not (err and status.terminal):
            click.echo(line, err=err)
            said = line
    return status


def draw(statuses: "Iterable[RunStatus]") -> "RunStatus":
    """A bar that moves with the run; the last status."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    words = TextColumn("{task.description} [dim]{task.fields[told]}")
    with Progress(words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), transient=True) as bars:
        bar = bars.add_task("", total=None, told="")
        for status in statuses:
            stage = f" {status.stage}" if status.stage else ""
            loss = f" loss {status.loss:.3f}" if status.loss is not None else ""
            told = escape(status.message) if status.step is None else f"attempt {status.attempt}{loss}"
            bars.update(bar, description=f"{status.run_id} [bold]{status.phase}[/]{stage}", told=told)
            bars.update(bar, completed=status.step or 0, total=status.of)
    return status


@contextmanager
def bytes_bar() -> "Iterator[tuple[Progress, Progress]]":
    """What tells of bytes that move, and of how many there are; a bar where somebody watches."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task("")
        yield (lambda moved: bars.advance(bar, moved)), (lambda size: bars.update(bar, total=size))


def log_to_stderr() -> None:
    """What the rooms of the job log, such as a store that is asked again; stdout carries the answer alone."""
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))


def warn(message: str) -> None:
    """Prints what is wrong and does not end the command."""
    click.secho(message, fg="yellow", err=True)
