"""From a config to exactly one Job.

The run id follows from the spec, and the Job carries it as its name: so whoever launches the same twice, at the same time
or after a lost answer, finds the Job that is there.
"""

import time
from dataclasses import dataclass
from importlib.metadata import version

from job.contract.config_file import parse_config
from job.contract.disk import check_scratch, disk_need
from job.contract.documents import Spec
from job.contract.errors import ConfigError, JobError, TakenError, UnavailableError, together
from job.contract.keys import RunKeys, config_key, run_id_of
from job.contract.model import canonical_bytes, sha256_hex
from job.inputs import anew, download_bytes, freeze, unfrozen
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.deciding import Action, LaunchPlan, Seen, decide, plan
from launcher.evidence import Evidence, Json, at
from launcher.kube import Lost
from launcher.manifest import (
    SPEC_SHA256,
    Manifest,
    build_job,
    check_ceilings,
    env_of,
    image_of,
    set_env,
    submission_of,
    trainer,
)
from launcher.runs import read_run

_TRIES, _PAUSE_SECONDS = 5, 1.0


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
    if not freeze_in_pod:
        base_bytes, dataset_bytes, weight_bytes = download_bytes(spec)
        need = disk_need(spec.recipe, weight_bytes, base_bytes, dataset_bytes)
        try:
            check_scratch(config, need, config_bytes, source)
        except ConfigError as error:
            problems.append(error)
    if problems:
        raise together(problems)
    if again:
        fresh = anew(spec, storage)
        spec = fresh.model_copy(update={"again": fresh.again - 1}) if resume else fresh
    run_id = run_id_of(spec.recipe.name, canonical_bytes(spec))
    submission = submission_of(config, config_bytes, storage.uri, submitter)
    job = build_job(template, submission, run_id, sha256_hex(canonical_bytes(spec)))
    if freeze_in_pod and spec.again:
        set_env(trainer(job), "FINETUNE_AGAIN", str(spec.again))
    return Prepared(config_bytes, spec, not freeze_in_pod, run_id, job)


def launch(prepared: Prepared, storage: Storage, cluster: Cluster, resume: bool = False) -> Launched:
    """Makes sure that the run has its Job, unless it has its result. After a lost answer it looks before it sends again.

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
    run_id, replaced, lost = prepared.run_id, None, False
    for attempt in range(1, _TRIES + 1):
        seen = see(prepared, storage, cluster, replaced)
        action = decide(prepared.spec, prepared.frozen, seen, resume and replaced is None)
        if action is Action.NOTHING:
            return Launched(run_id, None, created=False)
        put_documents(prepared, storage)
        if action is Action.ATTACH:
            cluster.check_pods(seen.run.job, undo=lost)
            return Launched(run_id, seen.run.job, created=False)
        if action is Action.REPLACE:
            replaced = str(seen.run.uid)
            cluster.delete_job(run_id, replaced)
            cluster.wait_until_gone(run_id, replaced)
            continue
        try:
            if made := cluster.create_job(prepared.job):
                return Launched(run_id, made, created=True)
        except Lost:
            if attempt == _TRIES:
                raise
            lost = True
            time.sleep(_PAUSE_SECONDS)
    raise UnavailableError(f"the Job {run_id} comes and goes", "Look at who deletes Jobs in this namespace.")


def try_out(prepared: Prepared, storage: Storage, cluster: Cluster, resume: bool = False) -> LaunchPlan:
    """What `launch` would do, its Job judged by the API server; raises what that would raise. Nothing is written."""
    seen = see(prepared, storage, cluster)
    action = decide(prepared.spec, prepared.frozen, seen, resume)
    if action is Action.ATTACH:
        cluster.check_pods(seen.run.job)
    elif action is not Action.NOTHING:
        cluster.create_job(prepared.job, dry_run=True)
    return plan(action, seen)


def see(prepared: Prepared, storage: Storage, cluster: Cluster, replaced: str | None = None) -> Seen:
    """What is to be seen of a run. The Job is read before the documents: see `read_run`.

    Args:
        prepared: the run.
        storage: the root of runs.
        cluster: where its Job is, or would be.
        replaced: the uid of a Job that was here until now.
    """
    job = cluster.get_job(prepared.run_id) or {}
    documents = read_run(storage, prepared.run_id)
    is_ours = at(job, "metadata", "annotations", SPEC_SHA256) == prepared.spec_sha256
    theirs = _spec_of(job, storage) if job and not is_ours else None
    site = env_of(prepared.job, "FINETUNE_SITE")
    return Seen(Evidence(job, None, documents), cluster.namespace, site, theirs, replaced)


def _spec_of(job: Manifest, storage: Storage) -> Spec | None:
    """What a Job trains, without its inputs: by the config that it points to, where that is in the store."""
    try:
        uri = env_of(job, "FINETUNE_CONFIG") or ""
        found = storage.get(uri.removeprefix(f"{storage.uri}/")) if uri.startswith(f"{storage.uri}/") else None
        config = parse_config(found[0], uri) if found else None
    except ConfigError:  # not made by this launcher, or of another version
        return None
    labels = job["metadata"].get("labels", {})
    return unfrozen(config, image_of(job), labels.get("app.kubernetes.io/version", "unknown")) if config else None


def put_documents(prepared: Prepared, storage: Storage) -> None:
    """The config under its hash, and the run's spec and config, where they are not there.

    Raises:
        TakenError: the run id has got another spec meanwhile.
    """
    keys = RunKeys(prepared.run_id)
    storage.put_if_absent(config_key(prepared.config_bytes), prepared.config_bytes)
    if prepared.frozen and storage.put_if_absent(keys.spec, canonical_bytes(prepared.spec)) is None:
        raise TakenError(f"{storage.uri}/{keys.spec} is another spec", "Give this config another name.")
    storage.put_if_absent(keys.config, prepared.config_bytes)
