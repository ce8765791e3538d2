"""The supervisor: the stages of a run in their order. It alone touches the store, and never imports torch."""

import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from job.attempt import Attempt, claim
from job.children import export_command, run_child
from job.contract.config import RunConfig
from job.contract.config_file import parse_config
from job.contract.documents import Artifacts, Published, Result
from job.contract.errors import DataError, JobError, NoInputError
from job.contract.plan import Plan
from job.environment import environment
from job.hearing import Heard
from job.interruption import Interruption
from job.logs import LogBuffer
from job.machine import read_machine
from job.model_card import localize_adapter
from job.preflight import check_machine, check_trackers
from job.preparation import Inputs, prepare_inputs, write_plan
from job.publishing import publish_directory
from job.report import RunFacts, write_report
from job.resuming import end_uploads, newest_checkpoint, published_adapter
from job.run import Run, finish, finished, identify, put_result, put_spec
from job.scratch import Scratch
from job.settings import Settings
from job.stages import Stages
from job.storage.canary import probe
from job.storage.opening import locate, open_storage
from job.training import fingerprint_of, train
from job.watchdog import Watchdog

log = structlog.get_logger()


def run(settings: Settings, stages: Stages, buffer: LogBuffer, interruption: Interruption) -> Result | None:
    """One start of the job, from its config to its result.

    Returns:
        The run's result; None with `--check`, which claims and keeps nothing.

    Raises:
        JobError: whatever ended it.
        ToldToStop: SIGTERM came where there was nothing to save.
        Overtaken: a newer attempt runs.
    """
    config, config_bytes = read_config(settings.config)
    check_trackers(config.training.report_to, os.environ)
    this = identify(config, open_storage(settings.runs), settings)
    log.info("run", run_id=this.run_id, uri=this.uri)
    now = probe(this.storage, this.keys.canary(uuid.uuid4().hex)).last_modified
    if result := finished(this):
        return keep(this, result, config_bytes, settings)
    scratch = Scratch(settings.scratch / this.run_id)
    settings.scratch.mkdir(parents=True, exist_ok=True)
    check_machine(config.compute, this.spec, settings.scratch, now)
    if settings.check:
        check(this, Scratch(settings.scratch / f"{this.run_id}.check"), settings, stages)
        return None
    put_spec(this, config_bytes)
    if (number := claim(this, settings, now)) is None:
        return run(replace(settings, run_id=this.run_id, again=False), stages, buffer, interruption)
    with Attempt(
        this,
        number,
        stages,
        buffer,
        settings.heartbeat_seconds,
        interruption.overtake,
        ending_seconds=settings.ending_seconds,
    ) as attempt:
        interruption.last_words = attempt.tell
        try:
            return execute(attempt, scratch, settings, stages, interruption)
        except DataError:
            keep_rejects(attempt, scratch)
            raise
        finally:
            shutil.rmtree(scratch.root, ignore_errors=True)


def read_config(uri: str) -> tuple[RunConfig, bytes]:
    """The config and its bytes.

    Raises:
        NoInputError: when there is no such object.
        ConfigError: naming everything wrong with it.
    """
    storage, key = locate(uri)
    found = storage.get(key)
    if found is None:
        raise NoInputError(f"there is no config {uri}", "Check --config or FINETUNE_CONFIG.")
    return parse_config(found[0], uri), found[0]


def keep(this: Run, result: Result, config_bytes: bytes, settings: Settings) -> Result:
    """A start that finds its result trains nothing; it finishes what an earlier one may have left out."""
    log.info("already done", result=f"{this.uri}result.json", same_as=result.same_as)
    if settings.check:
        return result
    if result.same_as:
        put_spec(this, config_bytes)
        return put_result(this, result)
    finish(this, result)
    return result


def check(this: Run, scratch: Scratch, settings: Settings, stages: Stages) -> None:
    """Everything that comes before training, and what a real start would then do."""
    try:
        with stages.enter("download"):
            scratch.prepare()
            plan = write_plan(this, prepare_inputs(this.spec, scratch), scratch, settings.llama_cpp)
            export(plan, scratch, Heard(stages), child_environment(this, scratch, settings), settings, "--check")
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)
    log.info("checked", would="train", then_export=this.spec.recipe.export.gguf, into=this.uri)


def execute(
    attempt: Attempt, scratch: Scratch, settings: Settings, stages: Stages, interruption: Interruption
) -> Result:
    """The stages of an attempt; those that an earlier one has finished are not repeated."""
    this, heard = attempt.run, Heard(stages)
    variables = child_environment(this, scratch, settings)
    with stages.enter("download"):
        end_uploads(attempt)
        scratch.prepare()
        inputs = prepare_inputs(this.spec, scratch)
        checkpoint: Path | None = None
        if published := published_adapter(attempt, scratch.adapter):
            localize_adapter(scratch.adapter, inputs.base.directory)
            heard.trained, heard.versions = published.train, published.versions
        else:
            checkpoint = newest_checkpoint(attempt, fingerprint_of(this), scratch.resumed)
        plan = write_plan(this, inputs, scratch, settings.llama_cpp, checkpoint)
    if published is None:
        with stages.enter("train"):
            if checkpoint is None:  # else the attempt that kept it has come past this
                export(plan, scratch, heard, variables, settings, "--check")
            published = train(attempt, plan, inputs, scratch, variables, settings, heard, interruption)
    with stages.enter("export"):
        export(plan, scratch, heard, variables, settings)
    with stages.enter("publish"):
        artifacts = publish(attempt, scratch, published, inputs, heard, stages)
        attempt.assert_newest()
    return put_result(this, result_of(attempt, artifacts, heard, stages, settings))


def publish(
    attempt: Attempt, scratch: Scratch, published: Published, inputs: Inputs, heard: Heard, stages: Stages
) -> Artifacts:
    """All that the run delivers: beside the adapter that is published already what was exported of it, and the report."""
    gguf = publish_directory(attempt, "gguf", scratch.gguf)
    merged = publish_directory(attempt, "merged", scratch.merged)
    artifacts = Artifacts(lora=published.files, gguf=gguf, merged=merged)
    facts = RunFacts(
        run_id=attempt.run.run_id,
        root=attempt.run.storage.uri,
        spec=attempt.run.spec,
        base=inputs.base,
        dataset=inputs.rows,
        heard=heard,
        artifacts=artifacts,
        seconds_by_stage=stages.seconds,
    )
    write_report(scratch.report, facts)
    return artifacts.model_copy(update={"report": publish_directory(attempt, "report", scratch.report)})


def result_of(attempt: Attempt, artifacts: Artifacts, heard: Heard, stages: Stages, settings: Settings) -> Result:
    """The run's answer, once all that it names is in the store."""
    this = attempt.run
    return Result(
        run_id=this.run_id,
        spec_sha256=this.spec_sha256,
        attempt=attempt.number,
        artifacts=artifacts,
        train=heard.summary,
        seconds_by_stage=stages.seconds,
        gpu_seconds=round(this.spec.gpus * sum(stages.seconds.values()), 3),
        versions=heard.versions,
        image=this.spec.image,
        code_version=this.spec.code_version,
        code_revision=settings.code_revision,
        parents=(this.spec.base_model.uri, *(file.uri for file in this.spec.dataset.train)),
    )


def child_environment(this: Run, scratch: Scratch, settings: Settings) -> dict[str, str]:
    """The variables of this run's children."""
    gpus, report_to = this.spec.gpus, this.spec.recipe.training.report_to
    cpus = read_machine().usable_cpus
    return environment(scratch.home, scratch.report, settings.llama_cpp, gpus, cpus, report_to, os.environ)


def export(
    plan: Plan, scratch: Scratch, heard: Heard, variables: Mapping[str, str], settings: Settings, *flags: str
) -> None:
    """The export child, where the config asks for more than the adapter.

    With `--check` a one-layer model goes through it, so that a GGUF that cannot be made is known before step 1.
    """
    asked = plan.recipe.export
    if asked.gguf or asked.lora_gguf or asked.merged:
        command = export_command(scratch.plan, *flags)
        watchdog = Watchdog(settings.watchdog_seconds, counts_work=True)
        run_child(
            command,
            variables,
            scratch.work,
            scratch.events,
            heard.hear,
            heard.said,
            watchdog,
            grace_seconds=settings.child_grace_seconds,
        )


def keep_rejects(attempt: Attempt, scratch: Scratch) -> None:
    """Whoever has to mend bad rows gets the list of them, though the run has failed."""
    try:
        publish_directory(attempt, "report", scratch.report)
        log.info("report", uri=f"{attempt.run.storage.uri}/{attempt.keys.artifacts('report')}")
    except JobError as error:
        log.warning("the report was not kept", message=error.message)


def show_where(result: Result, root: str) -> None:
    """Where the artifacts are, for whoever watched."""
    for kind, artifacts in result.artifacts:
        for artifact in artifacts:
            if kind in ("gguf", "merged") or artifact.key.endswith(("adapter_model.safetensors", "report.html")):
                log.info("artifact", uri=f"{root}/{artifact.key}", bytes=artifact.size)
