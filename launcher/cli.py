"""`finetune`: the command line. The only module that prints: the answer to stdout, progress to stderr."""

import functools
import getpass
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from job.contract.errors import ConfigError, JobError, NoInputError, UsageError
from job.contract.exits import Exit

# All else is imported by the command that needs it: `finetune --help` and completion answer at once.
if TYPE_CHECKING:
    from job.storage import Storage
    from launcher.cluster import Cluster
    from launcher.launching import Prepared
    from launcher.manifest import Manifest
    from launcher.status import RunStatus

FAILED, TIMEOUT, DETACHED = 1, 124, 130
# Whatever is wrong with the config or its inputs is one code to whoever launches: see README.md.
_CODES = {Exit.DATA: Exit.CONFIG, Exit.NO_INPUT: Exit.CONFIG, Exit.IO: FAILED, Exit.BUG: FAILED}
_POLL_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code."""
    try:
        code = cli.main(args=argv, prog_name="finetune", standalone_mode=False)
    except JobError as error:
        click.secho(error.message, fg="red", err=True)
        if error.resolution:
            click.echo(error.resolution, err=True)
        return int(_CODES.get(Exit(error.code), error.code))
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("detached: the run goes on; `finetune status` tells how it is, `finetune cancel` ends it", err=True)
        return DETACHED
    return code or Exit.OK  # of `click.exceptions.Exit`; a command itself returns None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="finetune", prog_name="finetune")
def cli() -> None:
    """Finetune LLMs on Kubernetes: one config, one Job, adapters and GGUF in S3."""


@dataclass(frozen=True)
class Site:
    """The root of runs and the Job template, each opened when it is first asked for."""

    runs: str | None
    template_path: Path

    @functools.cached_property
    def template(self) -> "Manifest":
        """The site's Job template."""
        return _read_template(self.template_path)

    @functools.cached_property
    def storage(self) -> "Storage":
        """The root: by the flag, the environment or the template."""
        from job.storage.opening import open_storage
        from launcher.manifest import env_of

        root = self.runs or env_of(self.template, "FINETUNE_RUNS")
        if not root:
            raise UsageError("no root of runs", "Give --runs, or set FINETUNE_RUNS here or in the Job template.")
        return open_storage(root)


@dataclass(frozen=True)
class Access:
    """How a cluster is reached."""

    kubeconfig: str | None
    context: str | None
    namespace: str | None

    def connect(self) -> "Cluster":
        """The cluster; looked up only once the config is known to be right."""
        from launcher.cluster import Cluster

        return Cluster.connect(self.kubeconfig, self.context, self.namespace)


def site_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command its `site`."""

    @click.option("--runs", envvar="FINETUNE_RUNS", help="where runs are kept: s3://bucket[/prefix] or a directory")
    @click.option(
        "--template",
        type=click.Path(path_type=Path),
        envvar="FINETUNE_TEMPLATE",
        default=Path("k8s/job.yaml"),
        show_default=True,
        help="the site's Job template",
    )
    @functools.wraps(command)
    def with_site(*given: Any, runs: str | None, template: Path, **named: Any) -> None:
        command(*given, site=Site(runs, template), **named)

    return with_site


def cluster_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command its `access`."""

    @click.option("--kubeconfig", help="as kubectl's")
    @click.option("--context", help="as kubectl's")
    @click.option("-n", "--namespace", help="as kubectl's")
    @functools.wraps(command)
    def with_access(
        *given: Any, kubeconfig: str | None, context: str | None, namespace: str | None, **named: Any
    ) -> None:
        command(*given, access=Access(kubeconfig, context, namespace), **named)

    return with_access


output = click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="text or json")


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@site_flags
def validate(config: Path, site: Site) -> None:
    """Check a config and its inputs; nothing is written."""
    prepared = _prepare(config, site, again=False)
    click.echo(f"{config} is valid: it would be the run {prepared.run_id}")


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--again", is_flag=True, help="a fresh run of a spec that was launched before")
@site_flags
def render(config: Path, again: bool, site: Site) -> None:
    """Print the Job that `launch` sends."""
    import yaml

    job = _prepare(config, site, again).job
    click.echo(yaml.safe_dump(job, sort_keys=False, width=120), nl=False)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--again", is_flag=True, help="a fresh run of a spec that was launched before")
@click.option("--resume", is_flag=True, help="replace a Job that has ended without a result, and go on from there")
@click.option("--dry-run", type=click.Choice(["server"]), help="let the API server judge the Job; write nothing")
@click.option("--wait", "wait_for", is_flag=True, help="until the run has ended")
@click.option("--timeout", type=float, help="of --wait, in seconds")
@site_flags
@cluster_flags
@output
def launch(
    config: Path,
    again: bool,
    resume: bool,
    dry_run: str | None,
    wait_for: bool,
    timeout: float | None,
    site: Site,
    access: Access,
    output: str,
) -> None:
    """Submit a config as a Job; the same config twice is one run."""
    from launcher import launching

    prepared = _prepare(config, site, again)
    cluster = access.connect()
    if dry_run:
        taken = cluster.create_job(prepared.job, dry_run=True) is None
        click.echo(f"{prepared.run_id} would {'find its Job' if taken else 'be created'} in {cluster.namespace}")
        return
    launched = launching.launch(prepared, site.storage, cluster, resume)
    done = "is there already" if launched.job else "has its result already"
    click.echo(f"{launched.run_id} {'created' if launched.created else done}", err=True)
    status = _status(launched.run_id, site.storage, cluster)
    if not wait_for:
        _show(status, output)
        return
    ended = _wait(status, site.storage, cluster, timeout)
    _show(ended, output)
    _end_as(ended)


@cli.command()
@click.argument("run")
@site_flags
@cluster_flags
@output
def status(
    run: str,
    site: Site,
    access: Access,
    output: str,
) -> None:
    """Tell how a run is."""
    _show(_status(run, site.storage, access.connect()), output)


@cli.command()
@click.argument("run")
@click.option("--timeout", type=float, help="in seconds")
@site_flags
@cluster_flags
@output
def wait(
    run: str,
    timeout: float | None,
    site: Site,
    access: Access,
    output: str,
) -> None:
    """Wait until a run has ended; exits with 1 when it has failed."""
    storage, cluster = site.storage, access.connect()
    ended = _wait(_status(run, storage, cluster), storage, cluster, timeout)
    _show(ended, output)
    _end_as(ended)


@cli.command()
@click.argument("run")
@site_flags
@cluster_flags
def cancel(
    run: str,
    site: Site,
    access: Access,
) -> None:
    """End a run: its Job is deleted, and that it was cancelled is kept."""
    from launcher.cancelling import cancel as end

    end(run, site.storage, access.connect(), _user())
    click.echo(f"{run} cancelled")


@cli.command("list")
@click.argument("name", required=False)
@click.option("--limit", default=20, show_default=True)
@site_flags
@output
def list_(name: str | None, limit: int, site: Site, output: str) -> None:
    """List the newest succeeded runs, of one model line or of all."""
    from launcher.runs import list_runs

    lines = list_runs(site.storage, name, limit)
    if output == "json":
        click.echo(json.dumps([line.model_dump(mode="json") for line in lines]))
        return
    for line in lines:
        loss = f"loss {line.result.train.train_loss:.3f}" if line.result else "its result is gone"
        click.echo(f"{line.run_id}  {line.frozen_at:%Y-%m-%d %H:%M}  {loss}")


@cli.command()
@click.argument("what", metavar="RUN|NAME@latest")
@click.option("--only", help="lora, gguf, merged, report, or a quantization such as q4_k_m")
@click.option("--to", type=click.Path(path_type=Path), default=Path(), show_default=True, help="a directory")
@site_flags
def pull(what: str, only: str | None, to: Path, site: Site) -> None:
    """Fetch a run's artifacts, each verified; run it again to go on after a cut."""
    from launcher.pulling import pull as fetch

    storage = site.storage
    with click.progressbar(length=None, label="pulled", file=sys.stderr) as bar:  # type: ignore[var-annotated]
        pulled = fetch(storage, what, to, only, bar.update)
    for path in pulled.files:
        click.echo(path)


def _prepare(config: Path, site: Site, again: bool) -> "Prepared":
    from launcher import launching

    try:
        body = config.read_bytes()
    except OSError as error:
        raise NoInputError(f"{config}: {error.strerror}", "Check the path of the config.") from error
    return launching.prepare(body, str(config), site.template, site.storage, _user(), again)


def _read_template(path: Path) -> "Manifest":
    import yaml

    try:
        template: object = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "Give --template, the site's copy of k8s/job.yaml.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}", "Mend the Job template.") from error
    if not isinstance(template, dict) or template.get("kind") != "Job":
        raise ConfigError(f"{path} is not a Job", "Start from the k8s/job.yaml of this version.")
    return template


def _status(run_id: str, storage: "Storage", cluster: "Cluster") -> "RunStatus":
    from launcher.runs import read_run
    from launcher.status import read_status

    now = datetime.now(UTC)
    job = cluster.get_job(run_id)
    pods = cluster.pods(job["metadata"]["uid"]) if job else []
    return read_status(job, pods, read_run(storage, run_id, now), now)


def _wait(status: "RunStatus", storage: "Storage", cluster: "Cluster", timeout: float | None) -> "RunStatus":
    """Looks again until the run has ended, and says each change."""
    deadline = time.monotonic() + timeout if timeout is not None else None
    said = None
    while not status.terminal:
        if (line := _line(status)) != said:
            click.echo(line, err=True)
            said = line
        if deadline is not None and time.monotonic() > deadline:
            click.echo(f"{status.run_id} has not ended within {timeout:g} s", err=True)
            raise click.exceptions.Exit(TIMEOUT)
        time.sleep(_POLL_SECONDS)
        before, status = status, _status(status.run_id, storage, cluster)
        if before.job_uid and not status.job_uid and not status.terminal:
            click.echo(f"{status.run_id}: its Job was deleted", err=True)
            raise click.exceptions.Exit(FAILED)
    return status


def _end_as(status: "RunStatus") -> None:
    if status.phase != "Succeeded":
        raise click.exceptions.Exit(FAILED)


def _show(status: "RunStatus", output: str) -> None:
    click.echo(status.model_dump_json() if output == "json" else _line(status))


def _line(status: "RunStatus") -> str:
    """A status in one line."""
    progress = f" step {status.step}/{status.of}" if status.step is not None else ""
    return f"{status.run_id}  {status.phase}{progress}  {status.message}"


def _user() -> str:
    """Who this is, as far as the machine knows."""
    try:
        return os.environ.get("FINETUNE_SUBMITTER") or getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
