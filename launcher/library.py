"""The launcher as a library: the verbs of the command line, with typed results, for a notebook or another scheduler."""

import getpass
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from job.contract.errors import ConfigError, NoInputError, UnavailableError, UsageError

# All else is imported by the verb that needs it: `finetune --help` and completion answer at once.
if TYPE_CHECKING:
    from job.contract.documents import Cancelled, FrozenModel
    from job.dataset.prepared import Prepared as Rows
    from job.storage import Progress, Storage
    from launcher.cluster import Cluster
    from launcher.deciding import LaunchPlan
    from launcher.diagnosis import Diagnosis
    from launcher.doctor import Check
    from launcher.launching import Launched, Prepared
    from launcher.listing import RunLine
    from launcher.log_lines import Told
    from launcher.manifest import Manifest
    from launcher.model_adding import Added, AddedFile
    from launcher.pulling import Pulled
    from launcher.scheduling import Scheduled, ScheduleLine
    from launcher.status import RunStatus

AnyPath = str | os.PathLike[str]
TEMPLATE = Path("k8s/job.yaml")
# For which a store that does not answer is asked again: a person waits, for an answer or for what takes long anyway.
_ASKING_SECONDS, _MOVING_SECONDS = 15, 60


class Launcher:
    """A site: its Job template, its root of runs, and one namespace of a cluster. Each is opened when first asked for.

    Every verb raises `job.contract.errors.JobError`, whose `message` says what is wrong and whose `resolution` what to do.

    Args:
        runs: the root, `s3://bucket[/prefix]` or a directory; else FINETUNE_RUNS of the environment, or of the template.
        template: the site's Job template.
        kubeconfig: as kubectl's, as are context, namespace and impersonate (--as); in a pod its own cluster is the default.
        context: of the kubeconfig.
        namespace: of the cluster.
        impersonate: whom to act as.
        submitter: who launches, for the record; else FINETUNE_SUBMITTER, or who this process belongs to.
    """

    def __init__(
        self,
        runs: str | None = None,
        template: AnyPath = TEMPLATE,
        kubeconfig: str | None = None,
        context: str | None = None,
        namespace: str | None = None,
        impersonate: str | None = None,
        submitter: str | None = None,
    ) -> None:
        self._runs, self._template_path = runs or os.environ.get("FINETUNE_RUNS"), Path(template)
        self._access = kubeconfig, context, namespace, impersonate
        self._submitter = submitter

    @cached_property
    def template(self) -> "Manifest":
        """The site's Job template."""
        return _read_template(self._template_path)

    @cached_property
    def storage(self) -> "Storage":
        """The root of runs."""
        from job.storage.opening import open_storage

        return open_storage(self._root, _ASKING_SECONDS)

    @property
    def _patient_storage(self) -> "Storage":
        """The same for what takes long: files that move, a log that is followed."""
        from job.storage.opening import open_storage

        return open_storage(self._root, _MOVING_SECONDS)

    @property
    def _root(self) -> str:
        """Where runs are kept."""
        from launcher.manifest import PLACEHOLDER, env_of

        root = self._runs or env_of(self.template, "FINETUNE_RUNS")
        if root and root != PLACEHOLDER:
            return root
        raise UsageError(
            f"no root of runs: FINETUNE_RUNS in {self._template_path} is missing or the one that it ships with",
            "Give --runs, or set FINETUNE_RUNS here or in the site's Job template (--template).",
        )

    @cached_property
    def cluster(self) -> "Cluster":
        """The cluster, and the namespace in it."""
        from launcher.cluster import Cluster

        return Cluster.connect(*self._access)

    @property
    def _cluster_if_any(self) -> "Cluster | None":
        """The same; None where nobody named one and none is found."""
        try:
            return self.cluster
        except UsageError:
            kubeconfig, context, *_ = self._access
            if kubeconfig or context:
                raise
            return None

    @cached_property
    def submitter(self) -> str:
        """Who launches, as far as the machine knows."""
        try:
            return self._submitter or os.environ.get("FINETUNE_SUBMITTER") or getpass.getuser()
        except (OSError, KeyError):
            return f"uid {os.getuid()}"

    def prepare(
        self, config: AnyPath, again: bool = False, freeze_in_pod: bool = False, resume: bool = False
    ) -> "Prepared":
        """Checks a config and freezes its inputs: the run that it would be, and its Job. Nothing is written.

        Args:
            config: the file.
            again: a fresh run of a spec that was launched before.
            freeze_in_pod: leave the inputs to the pod, where the launcher may not read them.
            resume: with `again`, the newest of the fresh runs instead of another one.
        """
        from job.storage.opening import hurried
        from launcher import launching

        given = (self.template, self.storage, self.submitter, again, freeze_in_pod, resume)
        with hurried(_ASKING_SECONDS):
            return launching.prepare(_read(config), str(config), *given)

    def validate(self, config: AnyPath) -> "tuple[str, Rows]":
        """Checks a config, its inputs and every row, as the job would, and where there is a cluster the right to launch.

        The run id, and what the rows are.
        """
        from job.storage.opening import hurried
        from launcher.validating import check_right, check_rows

        prepared = self.prepare(config)
        if cluster := self._cluster_if_any:
            with suppress(UnavailableError):  # a config can be checked far from any cluster
                check_right(cluster)
        with hurried(_MOVING_SECONDS):
            return prepared.run_id, check_rows(prepared.spec)

    def try_out(self, prepared: "Prepared", resume: bool = False) -> "LaunchPlan":
        """What `submit` would do, the Job judged by the API server; raises what that would raise. Nothing is written."""
        from launcher import launching

        return launching.try_out(prepared, self.storage, self.cluster, resume)

    def launch(
        self, config: AnyPath, again: bool = False, resume: bool = False, freeze_in_pod: bool = False
    ) -> "Launched":
        """Submits a config as a Job; the same config twice is one run.

        Args:
            config: the file.
            again: a fresh run of a spec that was launched before.
            resume: replace a Job that has ended without a result, and go on from there.
            freeze_in_pod: leave the inputs to the pod, where the launcher may not read them.
        """
        return self.submit(self.prepare(config, again, freeze_in_pod, resume), resume)

    def submit(self, prepared: "Prepared", resume: bool = False) -> "Launched":
        """Makes sure that a prepared run has its Job, unless it has its result."""
        from launcher import launching

        return launching.launch(prepared, self.storage, self.cluster, resume)

    def status(self, run: str) -> "RunStatus":
        """How a run is now."""
        from launcher.watching import look

        return self._ended(run) or look(run, self.storage, self.cluster)

    def watch(
        self,
        run: str,
        timeout: float | None = None,
        start_timeout: float | None = None,
        on_trouble: Callable[[str], object] = lambda _: None,
    ) -> "Iterator[RunStatus]":
        """Its status now, at every change, and every few seconds, up to the one that it ends with.

        Args:
            run: its id.
            timeout: seconds to the end at the latest; then `watching.TimedOut` is raised.
            start_timeout: seconds after which a Job is ended of which no pod has run. The time in a queue does not count.
            on_trouble: told when the API server or the store is away, which is borne for ten minutes.
        """
        from launcher.watching import statuses

        if ended := self._ended(run):
            return iter((ended,))
        return statuses(self.cluster, self.storage, run, on_trouble, timeout=timeout, start_timeout=start_timeout)

    def wait(self, run: str, timeout: float | None = None, start_timeout: float | None = None) -> "RunStatus":
        """The status that a run ends with; the arguments are those of `watch`."""
        *_, last = self.watch(run, timeout, start_timeout)
        return last

    def logs(self, run: str, follow: bool = False) -> "Iterator[Told]":
        """The log across a run's attempts: each line once, and a gap where some may be missing."""
        from launcher import logs

        if self._ended(run):
            return logs.stored(self.storage, run)
        if follow:
            return logs.follow(self.cluster, self._patient_storage, run)
        return logs.so_far(self.cluster, self.storage, run)

    def why(self, run: str) -> "Diagnosis | None":
        """What keeps a run, or a schedule's nights, from going on; None when nothing does."""
        from launcher.explaining import why

        return None if self._ended(run) else why(run, self.storage, self.cluster)

    def cancel(self, run: str) -> "Cancelled":
        """Ends a run: its Job is deleted, and that it was cancelled is kept."""
        from launcher.cancelling import cancel

        return cancel(run, self.storage, self.cluster, self.submitter)

    def pull(
        self,
        what: str,
        to: AnyPath,
        only: str | None = None,
        progress: "Progress" = lambda _: None,
        of_bytes: "Progress" = lambda _: None,
    ) -> "Pulled":
        """Fetches the artifacts of a run id or of `NAME@latest`, each verified. Needs the store alone.

        Args:
            what: a run id, or `NAME@latest`.
            to: a directory; it is made.
            only: a kind, or a quantization of the GGUF files such as `q4_k_m`.
            progress: is told of the bytes that move.
            of_bytes: is told once, before, of how many there are.
        """
        from launcher.pulling import pull

        return pull(self._patient_storage, what, Path(to), only, progress, of_bytes)

    def schedule(self, config: AnyPath, cron: str, time_zone: str | None = None, dry_run: bool = False) -> "Scheduled":
        """Makes a config a CronJob, or changes the one that its model line has.

        Args:
            config: the file.
            cron: five fields: minute, hour, day, month, weekday.
            time_zone: of these; None for `Etc/UTC`.
            dry_run: let the API server judge it, and write nothing.
        """
        from launcher.cron import DEFAULT_ZONE
        from launcher.scheduling import schedule

        given = (self.template, self.storage, self.cluster, cron, time_zone or DEFAULT_ZONE, self.submitter, dry_run)
        return schedule(_read(config), str(config), *given)

    def schedules(self) -> "list[ScheduleLine]":
        """The schedules of the namespace, and whether their nights come and go."""
        from launcher.scheduling import schedules

        return schedules(self.cluster)

    def unschedule(self, name: str) -> None:
        """Removes a schedule. A night that runs goes on."""
        from launcher.scheduling import unschedule

        unschedule(name, self.cluster)

    def find_model(self, source: str) -> "FrozenModel":
        """A base model of a hub or a directory as it is now, checked as far as can be without its weights.

        Args:
            source: `hf://organisation/name[@revision]`, a directory, or a prefix of a store.
        """
        from job.storage.opening import hurried
        from launcher.model_adding import find

        with hurried(_ASKING_SECONDS):
            return find(source)

    def add_model(
        self,
        model: "FrozenModel",
        to: str,
        progress: "Progress" = lambda _: None,
        of_bytes: "Progress" = lambda _: None,
        on_file: "Callable[[str, AddedFile, bool], object]" = lambda *_: None,
    ) -> "Added":
        """Puts a base model into a store, each file verified; what is there already is not moved again.

        Args:
            model: as `find_model` found it.
            to: the prefix, `s3://bucket/models/name/`, or a directory.
            progress: is told of the bytes that move.
            of_bytes: is told once, before, of how many there are.
            on_file: is told of each file that is there, and whether it had to be sent.
        """
        from job.storage.opening import open_storage
        from launcher.model_adding import add

        return add(model, open_storage(to.rstrip("/"), _MOVING_SECONDS), progress, of_bytes, on_file)

    def doctor(self) -> "list[Check]":
        """Whether runs can be launched here: cluster, rights, GPU nodes, queue, store, upload rate."""
        from launcher.doctor import examine

        return examine(self.template, lambda: self.storage, lambda: self.cluster)

    def _ended(self, run: str) -> "RunStatus | None":
        """How a run has ended, by the store alone, where no cluster is known; None where one is."""
        from launcher.runs import read_run
        from launcher.status import ended_by_store

        return None if self._cluster_if_any else ended_by_store(read_run(self.storage, run))

    # Last, for its name is that of the type.
    def list(
        self,
        name: str | None = None,
        limit: int = 20,
        selector: str | None = None,
        on_overdue: Callable[[str], object] = lambda _: None,
    ) -> "list[RunLine]":
        """The newest runs of a model line, or of all; those of the store alone where there is no cluster.

        Args:
            name: the model line.
            limit: at most so many.
            selector: more labels that a Job must have, as kubectl's -l.
            on_overdue: told the id of each run that has been pending for long, shown or not.
        """
        from launcher.listing import list_runs

        cluster = self.cluster if selector else self._cluster_if_any
        return list_runs(self.storage, cluster, name, limit, selector, on_overdue)


def _read(config: AnyPath) -> bytes:
    try:
        return Path(config).read_bytes()
    except OSError as error:
        raise NoInputError(f"{config}: {error.strerror}", "Check the path of the config.") from error


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
