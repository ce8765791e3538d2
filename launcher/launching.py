"""From a config to exactly one Job.

The run id follows from the frozen spec, and the Job carries it as its name: so whoever launches the same twice, at the
same time or after a lost answer, finds the Job that is there.
"""

import time
from dataclasses import dataclass
from importlib.metadata import version

from job.contract.config import RunConfig
from job.contract.config_file import parse_config
from job.contract.documents import Spec
from job.contract.errors import TakenError, UnavailableError
from job.contract.keys import RunKeys, config_key, run_id_of
from job.contract.model import canonical_bytes, sha256_hex
from job.inputs import anew, freeze
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.kube import Json, Lost
from launcher.manifest import SPEC_SHA256, Manifest, Submission, build_job, image_of

_TRIES, _PAUSE_SECONDS = 5, 1.0


@dataclass(frozen=True)
class Prepared:
    """A run that could be launched: nothing of it is written yet."""

    config_bytes: bytes
    spec: Spec
    run_id: str
    job: Manifest

    @property
    def spec_sha256(self) -> str:
        """The hash of the spec's bytes."""
        return sha256_hex(canonical_bytes(self.spec))


@dataclass(frozen=True)
class Launched:
    """Where a launch came to."""

    run_id: str
    job: Json | None
    """The Job that is there; None when the run has its result already, or on a dry run against no cluster."""
    created: bool
    """Whether this launch made it."""


def prepare(
    config_bytes: bytes, source: str, template: Manifest, storage: Storage, submitter: str, again: bool = False
) -> Prepared:
    """The run of a config: its inputs frozen, its id, and the Job that would be sent.

    Args:
        config_bytes: the config file's.
        source: its name, for messages.
        template: the site's Job template.
        storage: the root of runs; read only.
        submitter: who launches, for the record.
        again: a fresh run of a spec that was launched before.

    Raises:
        JobError: the config or an input cannot be used, or the template does not allow it.
    """
    config = parse_config(config_bytes, source)
    spec = freeze(config, image_of(template), version("finetune"))
    if again:
        spec = anew(spec, storage)
    run_id = run_id_of(spec.recipe.name, canonical_bytes(spec))
    return Prepared(config_bytes, spec, run_id, _job(config, config_bytes, spec, run_id, template, storage, submitter))


def _job(
    config: RunConfig,
    config_bytes: bytes,
    spec: Spec,
    run_id: str,
    template: Manifest,
    storage: Storage,
    submitter: str,
) -> Manifest:
    return build_job(
        template,
        Submission(
            run_id=run_id,
            spec_sha256=sha256_hex(canonical_bytes(spec)),
            run_uri=f"{storage.uri}/{RunKeys(run_id).prefix}",
            config_uri=f"{storage.uri}/{config_key(config_bytes)}",
            compute=config.compute,
            submitter=submitter,
            version=version("finetune"),
        ),
    )


def launch(prepared: Prepared, storage: Storage, cluster: Cluster, resume: bool = False) -> Launched:
    """Makes sure that the run has its Job, unless it has its result.

    Args:
        prepared: the run.
        storage: the root of runs; gets the config and the spec.
        cluster: where the Job goes.
        resume: replace a Job that has ended without a result; the run goes on from what it has.

    Raises:
        TakenError: the run id belongs to another spec, or its Job has ended without a result.
        ConfigError: the cluster refuses the Job, in its own words.
        UnavailableError: the store or the API server cannot be reached.
    """
    keys = RunKeys(prepared.run_id)
    if storage.head(keys.result):
        return Launched(prepared.run_id, None, created=False)
    put_documents(prepared, storage)
    job = cluster.get_job(prepared.run_id)
    if job and ended(job) and resume:
        _remove(cluster, job)
        job = None
    if job is None:
        job, created = create(prepared.job, cluster)
    else:
        created = False
    check_same(job, prepared)
    if not created and (how := ended(job)):
        raise TakenError(
            f"the Job {prepared.run_id} has ended ({how}) and the run has no result",
            "Look at why, then launch with --resume to go on, or with --again for a fresh run.",
        )
    return Launched(prepared.run_id, job, created)


def put_documents(prepared: Prepared, storage: Storage) -> None:
    """The config under its hash, and the run's spec and config, where they are not there.

    Raises:
        TakenError: the run id belongs to another spec.
    """
    keys = RunKeys(prepared.run_id)
    storage.put_if_absent(config_key(prepared.config_bytes), prepared.config_bytes)
    if storage.put_if_absent(keys.spec, canonical_bytes(prepared.spec)) is None:
        raise TakenError(f"{storage.uri}/{keys.spec} holds another spec", "Give this config another name.")
    storage.put_if_absent(keys.config, prepared.config_bytes)


def create(job: Manifest, cluster: Cluster) -> tuple[Json, bool]:
    """The Job, and whether we made it. A lost answer is looked up before anything is sent again.

    Raises:
        UnavailableError: after a few tries.
    """
    name = job["metadata"]["name"]
    for attempt in range(1, _TRIES + 1):
        try:
            if made := cluster.create_job(job):
                return made, True
        except Lost:
            if attempt == _TRIES:
                raise
            time.sleep(_PAUSE_SECONDS)
        if found := cluster.get_job(name):
            return found, False
    raise UnavailableError(f"the Job {name} comes and goes", "Look at who deletes Jobs in this namespace.")


def check_same(job: Json, prepared: Prepared) -> None:
    """Raises `TakenError` when the Job of that name is not this run's. The annotation tells: Kueue changes templates."""
    theirs = job["metadata"].get("annotations", {}).get(SPEC_SHA256)
    if theirs != prepared.spec_sha256:
        raise TakenError(
            f"the Job {prepared.run_id} belongs to another spec: {theirs or 'it has none'}, not {prepared.spec_sha256}",
            "Give this config another name, or delete that Job if it is yours.",
        )


def ended(job: Json) -> str | None:
    """`Complete` or `Failed` once a Job has that condition, else None."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            kind: str = condition["type"]
            return kind
    return None


def _remove(cluster: Cluster, job: Json) -> None:
    """Deletes an ended Job, and waits until its name is free."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    cluster.delete_job(name, uid)
    deadline = time.monotonic() + 60
    while (there := cluster.get_job(name)) and there["metadata"]["uid"] == uid:
        if time.monotonic() > deadline:
            raise UnavailableError(f"the Job {name} is still being deleted after a minute", "Launch again later.")
        time.sleep(_PAUSE_SECONDS / 2)
