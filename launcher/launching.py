"""From a config to exactly one Job.

The run id follows from the spec, and the Job carries it as its name: so whoever launches the same twice, at the same time
or after a lost answer, finds the Job that is there.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from job.contract.config_file import parse_config
from job.contract.documents import Spec
from job.contract.errors import ConfigError, JobError, TakenError, UnavailableError, together
from job.contract.keys import RunKeys, config_key, run_id_of
from job.contract.model import canonical_bytes, differences, read_document, sha256_hex
from job.inputs import anew, freeze, unfrozen
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.evidence import Evidence
from launcher.kube import Json, Lost
from launcher.manifest import (
    SPEC_SHA256,
    Manifest,
    Submission,
    build_job,
    check_ceilings,
    env_of,
    image_of,
    set_env,
    trainer,
)
from launcher.runs import read_run

_TRIES, _PAUSE_SECONDS = 5, 1.0
_DIFFERENCES_SHOWN = 8


class RunFailed(JobError):
    """A run's Job has ended and left no result."""


@dataclass(frozen=True)
class Prepared:
    """A run that could be launched: nothing of it is written yet."""

    config_bytes: bytes
    spec: Spec
    frozen: bool
    """Whether the spec pins its inputs; else the first attempt does, and the spec is the run's name only."""
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
    """The Job that is there; None when the run has its result already."""
    created: bool
    """Whether this launch made it."""


def prepare(
    config_bytes: bytes,
    source: str,
    template: Manifest,
    storage: Storage,
    submitter: str,
    again: bool = False,
    freeze_in_pod: bool = False,
    resume: bool = False,
) -> Prepared:
    """The run of a config: its inputs frozen, its id, and the Job that would be sent.

    Args:
        config_bytes: the config file's.
        source: its name, for messages.
        template: the site's Job template.
        storage: the root of runs; read only.
        submitter: who launches, for the record.
        again: a fresh run of a spec that was launched before.
        freeze_in_pod: leave the inputs alone: whoever launches may not be allowed to read them.
        resume: with `again`, the newest of the fresh runs instead of another one.

    Raises:
        JobError: the config or an input cannot be used, or the template does not allow it.
    """
    config = parse_config(config_bytes, source)
    problems: list[JobError] = []
    try:
        check_ceilings(template, config.compute)
    except ConfigError as error:
        problems.append(error)
    try:
        spec = (unfrozen if freeze_in_pod else freeze)(config, image_of(template), version("finetune"))
    except JobError as error:
        raise together([*problems, error]) from error
    if problems:
        raise together(problems)
    if again:
        fresh = anew(spec, storage)
        spec = fresh.model_copy(update={"again": fresh.again - 1}) if resume else fresh
    run_id = run_id_of(spec.recipe.name, canonical_bytes(spec))
    submission = Submission(
        run_id=run_id,
        model=config.name,
        spec_sha256=sha256_hex(canonical_bytes(spec)),
        run_uri=f"{storage.uri}/{RunKeys(run_id).prefix}",
        config_uri=f"{storage.uri}/{config_key(config_bytes)}",
        compute=config.compute,
        submitter=submitter,
        version=version("finetune"),
    )
    job = build_job(template, submission)
    if freeze_in_pod and spec.again:
        set_env(trainer(job), "FINETUNE_AGAIN", str(spec.again))
    return Prepared(config_bytes, spec, not freeze_in_pod, run_id, job)


def launch(prepared: Prepared, storage: Storage, cluster: Cluster, resume: bool = False) -> Launched:
    """Makes sure that the run has its Job, unless it has its result.

    Args:
        prepared: the run.
        storage: the root of runs; gets the config and the spec.
        cluster: where the Job goes.
        resume: replace a Job that has ended without a result; the run goes on from what it has.

    Raises:
        TakenError: the run id belongs to another spec, or an attempt of another Job lives.
        RunFailed: its Job has ended without a result, and `resume` was not asked for.
        ConfigError: the cluster refuses the Job, in its own words.
        UnavailableError: the store or the API server cannot be reached.
    """
    run_id = prepared.run_id
    if storage.head(RunKeys(run_id).result):
        return Launched(run_id, None, created=False)
    put_documents(prepared, storage)
    job, created = cluster.get_job(run_id), False
    replaced: str | None = None
    if job:
        check_same(job, prepared)
        if job["metadata"].get("deletionTimestamp") or (resume and ended(job)):
            replaced = str(job["metadata"]["uid"])
            cluster.delete_job(run_id, replaced)
            cluster.wait_until_gone(run_id, replaced)
            job = None
    site = env_of(prepared.job, "FINETUNE_SITE")
    if job is None and (run := lives_elsewhere(run_id, storage, cluster, site, replaced)):
        job = cluster.get_job(run_id)  # a launcher beside us may have made it meanwhile
        if job is None:
            raise TakenError(
                f"{run_id} is run by another Job: {run.holder} gave a sign of life {run.silence} ago",
                "Wait for it, or cancel it where it runs.",
            )
    if job is None:
        job, created = create(prepared.job, cluster)
    check_same(job, prepared)
    if not created and (how := ended(job)):
        raise RunFailed(
            f"the Job {run_id} has ended ({how}) and the run has no result",
            f"`finetune why {run_id}` says why. Then launch with --resume to go on, or with --again for a fresh run.",
        )
    return Launched(run_id, job, created)


def put_documents(prepared: Prepared, storage: Storage) -> None:
    """The config under its hash, and the run's spec and config, where they are not there.

    Raises:
        TakenError: the run id belongs to another spec; says what differs.
    """
    keys = RunKeys(prepared.run_id)
    storage.put_if_absent(config_key(prepared.config_bytes), prepared.config_bytes)
    if prepared.frozen and storage.put_if_absent(keys.spec, canonical_bytes(prepared.spec)) is None:
        raise TakenError(
            f"{storage.uri}/{keys.spec} is another spec: {_what_differs(prepared, storage)}",
            "Give this config another name.",
        )
    storage.put_if_absent(keys.config, prepared.config_bytes)


def _what_differs(prepared: Prepared, storage: Storage) -> str:
    """Between the spec that a run id has and the one that was to be launched."""
    key = RunKeys(prepared.run_id).spec
    found = storage.get(key)
    if found is None:
        return "it is gone by now"
    standing = read_document(Spec, found[0], f"{storage.uri}/{key}")
    changed = differences(standing.model_dump(mode="json"), prepared.spec.model_dump(mode="json"))
    more = len(changed) - _DIFFERENCES_SHOWN
    return "; ".join(changed[:_DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def lives_elsewhere(
    run_id: str, storage: Storage, cluster: Cluster, site: str | None = None, job_uid: str | None = None
) -> Evidence | None:
    """What is to be seen of a run that has no Job here, while an attempt of it lives in another place.

    Args:
        run_id: whose.
        storage: the root of runs.
        cluster: where there is no Job of it: an attempt of this namespace is one whose Job was deleted.
        site: this cluster's name; None where it is not known.
        job_uid: of a Job that was here until now.
    """
    now = datetime.now(UTC)
    run = Evidence({}, None, read_run(storage, run_id, now), now)
    claim = run.documents.claim
    here = claim is not None and (
        (job_uid is not None and claim.job_uid == job_uid)
        or (claim.namespace == cluster.namespace and site in (None, claim.site))
    )
    return run if run.beats and not run.cancelled and not here else None


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
