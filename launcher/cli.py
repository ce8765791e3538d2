"""`finetune`: the command line. What it prints, printing.py puts in form: the answer to stdout, progress to stderr."""

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from job.contract.errors import JobError
from job.contract.exits import Exit
from launcher.library import TEMPLATE, Launcher
from launcher.printing import answer, bytes_bar, draw, log_to_stderr, say_changes, show_status, warn

# All else is imported by the command that needs it: `finetune --help` and completion answer at once.
if TYPE_CHECKING:
    from launcher.model_adding import AddedFile
    from launcher.status import RunStatus

FAILED, TIMEOUT, DETACHED = 1, 124, 130
# Whatever is wrong with the config or its inputs is one code to whoever launches: see README.md.
_CODES = {Exit.DATA: Exit.CONFIG, Exit.NO_INPUT: Exit.CONFIG, Exit.IO: FAILED, Exit.BUG: FAILED}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code."""
    try:
        code = cli.main(args=argv, prog_name="finetune", standalone_mode=False)
    except JobError as error:
        click.secho(error.message, fg="red", err=True)
        if error.resolution:
            click.echo(error.resolution, err=True)
        return _code(error)
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped: what was launched goes on, and `finetune list` shows it", err=True)
        return DETACHED
    return code or Exit.OK  # of `click.exceptions.Exit`; a command itself returns None


def _code(error: JobError) -> int:
    from launcher.watching import TimedOut

    return TIMEOUT if isinstance(error, TimedOut) else int(_CODES.get(Exit(error.code), error.code))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="finetune", prog_name="finetune")
def cli() -> None:
    """Finetune LLMs on Kubernetes: one config, one Job, adapters and GGUF in S3."""


def site_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command its `launcher`, which knows no cluster but the one that kubectl would reach."""

    @click.option("--runs", help="where runs are kept: s3://bucket[/prefix] or a directory [FINETUNE_RUNS, template]")
    @click.option(
        "--template",
        type=click.Path(path_type=Path),
        envvar="FINETUNE_TEMPLATE",
        default=TEMPLATE,
        show_default=True,
        help="the site's Job template",
    )
    @functools.wraps(command)
    def with_site(*given: Any, runs: str | None, template: Path, access: Any = (), **named: Any) -> None:
        log_to_stderr()
        command(*given, launcher=Launcher(runs, template, **dict(access)), **named)

    return with_site


def cluster_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command a `launcher` whose cluster can be chosen as kubectl's."""

    @click.option("--kubeconfig", help="as kubectl's")
    @click.option("--context", help="as kubectl's")
    @click.option("-n", "--namespace", help="as kubectl's")
    @click.option("--as", "impersonate", help="as kubectl's")
    @site_flags
    @functools.wraps(command)
    def with_cluster(*given: Any, **named: Any) -> None:
        command(*given, **named)

    @functools.wraps(with_cluster)
    def with_access(
        *given: Any,
        kubeconfig: str | None,
        context: str | None,
        namespace: str | None,
        impersonate: str | None,
        **named: Any,
    ) -> None:
        access = {"kubeconfig": kubeconfig, "context": context, "namespace": namespace, "impersonate": impersonate}
        with_cluster(*given, access=access, **named)

    return with_access


class Duration(click.ParamType[float]):
    """Seconds, or as kubectl has it: `30m`, `1h30m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", str(value))
        if not found or not any(found.groups()):
            self.fail(f"{value!r} is no length of time such as 90, 30m or 2h", param, ctx)
        hours, minutes, seconds = (float(each or 0) for each in found.groups())
        return 3600 * hours + 60 * minutes + seconds


output = click.option("-o", "output", type=click.Choice(["json", "yaml", "name", "wide"]), help="as kubectl's")
again = click.option("--again", is_flag=True, help="a fresh run of a spec that was launched before")
freeze = click.option(
    "--freeze",
    type=click.Choice(["here", "pod"]),
    default="here",
    show_default=True,
    help="who looks at the inputs and pins them; the pod, where the launcher may not read them",
)
timeout = click.option(
    "--timeout", type=Duration(), help="give up waiting after so long, and leave the run: 90, 30m, 2h"
)
start_timeout = click.option(
    "--start-timeout", type=Duration(), help="after which a run that cannot start is ended; queues do not count"
)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@cluster_flags
def validate(config: Path, launcher: Launcher) -> None:
    """Check a config, its inputs and its rows; nothing is written."""
    run_id, rows = launcher.validate(config)
    for reject in rows.rejects:
        click.echo(f"left out: {reject}", err=True)
    for warning in rows.warnings:
        warn(warning)
    counts = f"{rows.train.rows:,} rows to train on" + (f", {rows.eval.rows:,} to evaluate" if rows.eval else "")
    click.echo(f"{config} is valid: {counts}; it would be the run {run_id}")


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@again
@freeze
@site_flags
def render(config: Path, again: bool, freeze: str, launcher: Launcher) -> None:
    """Print the Job that `launch` sends."""
    import yaml

    job = launcher.prepare(config, again, freeze == "pod").job
    click.echo(yaml.safe_dump(job, sort_keys=False, width=120), nl=False)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@again
@click.option("--resume", is_flag=True, help="replace a Job that has ended without a result, and go on from there")
@freeze
@click.option("--dry-run", type=click.Choice(["server"]), help="tell what would be done, the Job judged; write nothing")
@click.option("--wait", "wait_for", is_flag=True, help="until the run has ended")
@timeout
@start_timeout
@cluster_flags
@output
def launch(
    config: Path,
    again: bool,
    resume: bool,
    freeze: str,
    dry_run: str | None,
    wait_for: bool,
    timeout: float | None,
    start_timeout: float | None,
    launcher: Launcher,
    output: str | None,
) -> None:
    """Submit a config as a Job; the same config twice is one run."""
    if not wait_for and (timeout is not None or start_timeout is not None):
        raise click.UsageError("--timeout and --start-timeout are for --wait: nobody else is there to obey them")
    prepared = launcher.prepare(config, again, freeze == "pod", resume)
    if dry_run:
        planned = launcher.try_out(prepared, resume)
        answer(planned, output, planned.run_id, f"{planned.run_id} {planned.message}")
        return
    click.echo(prepared.run_id, err=True)  # before anything is created: a fresh run has no other name to be found by
    launched = launcher.submit(prepared, resume)
    done = "is there already" if launched.job else "has its result already"
    click.echo(f"{launched.run_id} {'created' if launched.created else done}", err=True)
    if wait_for:
        _wait(launcher, launched.run_id, timeout, start_timeout, output)
    else:
        status = launcher.status(launched.run_id)
        show_status(status, output)
        if not status.terminal:
            click.echo(f"`finetune watch {launched.run_id}` follows it", err=True)
        elif status.artifacts:
            click.echo(f"`finetune pull {launched.run_id} --to DIRECTORY` fetches what it made", err=True)


@cli.command()
@click.argument("run")
@cluster_flags
@output
def status(run: str, launcher: Launcher, output: str | None) -> None:
    """Tell how a run is."""
    show_status(launcher.status(run), output)


@cli.command()
@click.argument("run")
@timeout
@start_timeout
@cluster_flags
@output
def wait(run: str, timeout: float | None, start_timeout: float | None, launcher: Launcher, output: str | None) -> None:
    """Wait until a run has ended; exits with 1 when it has failed."""
    _wait(launcher, run, timeout, start_timeout, output)


@cli.command()
@click.argument("run")
@timeout
@start_timeout
@cluster_flags
def watch(run: str, timeout: float | None, start_timeout: float | None, launcher: Launcher) -> None:
    """Watch a run: phase, stage, step, loss, ETA; live on a terminal, a line for each change elsewhere."""
    from launcher.tables import status_line

    with _detaching(run):
        statuses = launcher.watch(run, timeout, start_timeout, warn)
        last = draw(statuses) if sys.stdout.isatty() else say_changes(statuses, err=False)
    if sys.stdout.isatty():
        click.echo(status_line(last))
    _end_as(last)


@cli.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="until the run has ended")
@cluster_flags
def logs(run: str, follow: bool, launcher: Launcher) -> None:
    """Print a run's log, across its attempts; from the store where its pods are gone."""
    from launcher.log_lines import Gap

    source = None
    with _detaching(run):
        for told in launcher.logs(run, follow):
            if isinstance(told, Gap):
                click.secho(told.text, fg="yellow", err=True)
                continue
            if told.source != source:
                source = told.source
                click.secho(f"==> {source} <==", bold=True, err=True)
            click.echo(told.text)


@cli.command()
@click.argument("run")
@cluster_flags
@output
def why(run: str, launcher: Launcher, output: str | None) -> None:
    """Say what keeps a run, or a schedule's nights, from going on: in whose words, and what to do."""
    found = launcher.why(run)
    if found is None:
        if output != "name":
            click.echo("null" if output in ("json", "yaml") else f"nothing keeps {run}")
        return
    answer(found, output, found.category, found.text)


@cli.command()
@click.argument("run")
@cluster_flags
def cancel(run: str, launcher: Launcher) -> None:
    """End a run: its pod is told to stop, its Job is deleted, and that it was cancelled is kept."""
    cancelled = launcher.cancel(run)
    click.echo(f"{run} cancelled by {cancelled.by}")


@cli.command("list")
@click.argument("name", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("-l", "--selector", help="labels of the Jobs, as kubectl's")
@cluster_flags
@output
def list_(name: str | None, limit: int, selector: str | None, launcher: Launcher, output: str | None) -> None:
    """List the newest runs, of one model line or of all."""
    from launcher.tables import runs_table

    overdue: list[str] = []
    lines, now = launcher.list(name, limit, selector, overdue.append), datetime.now(UTC)
    names = "\n".join(line.status.run_id for line in lines)
    answer(lines, output, names, runs_table(lines, now, output == "wide") if lines else "no runs")
    for run in overdue:
        warn(f"{run} has been pending for long: `finetune why {run}`")


@cli.command()
@click.argument("what", metavar="RUN|NAME@latest")
@click.option("--only", help="lora, gguf, merged, report, or a quantization such as q4_k_m")
@click.option("--to", type=click.Path(path_type=Path), default=Path(), show_default=True, help="a directory")
@site_flags
def pull(what: str, only: str | None, to: Path, launcher: Launcher) -> None:
    """Fetch a run's artifacts, each verified; run it again to go on after a cut."""
    with bytes_bar() as (progress, of_bytes):
        pulled = launcher.pull(what, to, only, progress, of_bytes)
    click.echo(f"{pulled.moved_bytes:,} bytes fetched, {pulled.kept_bytes:,} were there", err=True)
    for path in pulled.files:
        click.echo(path)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("cron", metavar="'MINUTE HOUR DAY MONTH WEEKDAY'")
@click.option("--time-zone", help="of these times; else Etc/UTC")
@click.option("--dry-run", type=click.Choice(["server"]), help="let the API server judge it; write nothing")
@cluster_flags
def schedule(config: Path, cron: str, time_zone: str | None, dry_run: str | None, launcher: Launcher) -> None:
    """Train a config every night: a CronJob, made or changed; `schedules` lists them, `unschedule` removes one."""
    scheduled = launcher.schedule(config, cron, time_zone, bool(dry_run))
    done = "created" if scheduled.created else "changed"
    click.echo(f"{scheduled.name} {'would be ' if dry_run else ''}{done}; it starts at")
    for time in scheduled.next_times:
        click.echo(f"  {time:%Y-%m-%d %H:%M %Z}")


@cli.command()
@cluster_flags
@output
def schedules(launcher: Launcher, output: str | None) -> None:
    """List the schedules, and which of them are stuck."""
    from launcher.tables import schedules_table

    lines = launcher.schedules()
    text = schedules_table(lines, datetime.now(UTC)) if lines else "no schedules"
    answer(lines, output, "\n".join(line.name for line in lines), text)


@cli.command()
@click.argument("name")
@cluster_flags
def unschedule(name: str, launcher: Launcher) -> None:
    """Remove a schedule; a night that runs goes on."""
    launcher.unschedule(name)
    click.echo(f"{name} is scheduled no more")


@cli.group()
def model() -> None:
    """Base models in the store."""


@model.command("add")
@click.argument("source", metavar="FROM")
@click.argument("to")
def add_model(source: str, to: str) -> None:
    """Bring a base model from hf://org/model[@revision] or a directory into the store; again to go on after a cut."""
    log_to_stderr()
    launcher = Launcher()
    found = launcher.find_model(source)
    size = sum(file.size for file in found.files)
    commit = f" at commit {found.commit}" if found.commit else ""
    click.echo(f"{source}{commit}: {len(found.files)} files, {size:,} bytes", err=True)
    watched = sys.stderr.isatty()

    def on_file(name: str, file: "AddedFile", sent: bool) -> None:
        if not watched:
            told = {"event": "sent" if sent else "kept", "file": name, "bytes": file.size, "sha256": file.sha256}
            click.echo(json.dumps(told), err=True)

    with bytes_bar() as (progress, of_bytes):
        added = launcher.add_model(found, to, progress, of_bytes, on_file)
    click.echo(f"{added.sent_bytes:,} bytes added, {added.kept_bytes:,} were there", err=True)
    click.echo(added.uri)


@cli.command()
@cluster_flags
@output
def doctor(launcher: Launcher, output: str | None) -> None:
    """Look whether runs can be launched here: cluster, rights, GPU nodes, queue, store, grace period."""
    from launcher.doctor import code_of
    from launcher.tables import checks_table

    checks = launcher.doctor()
    failed = "\n".join(check.name for check in checks if check.ok is False)
    answer(checks, output, failed, checks_table(checks))
    raise click.exceptions.Exit(code_of(checks))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script: source <(finetune completion bash)."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # click has these three
    click.echo(kind(cli, {}, "finetune", "_FINETUNE_COMPLETE").source())


def _wait(launcher: Launcher, run: str, timeout: float | None, start_timeout: float | None, output: str | None) -> None:
    """Waits for the end of a run, tells each change, and exits as it ended."""
    with _detaching(run):
        ended = say_changes(launcher.watch(run, timeout, start_timeout, warn), err=True)
    show_status(ended, output)
    _end_as(ended)


@contextmanager
def _detaching(run: str) -> Iterator[None]:
    """Ctrl-C leaves the run alone, and says how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"detached: {run} goes on. `finetune watch {run}` comes back, `finetune cancel {run}` ends it", err=True
        )
        raise click.exceptions.Exit(DETACHED) from None


def _end_as(status: "RunStatus") -> None:
    if status.phase != "Succeeded":
        raise click.exceptions.Exit(FAILED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
