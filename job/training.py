"""The train stage: the child, its checkpoints on their way to the store, and the adapter the moment it is there."""

import shutil
import signal
from collections.abc import Mapping

from job.attempt import Attempt
from job.checkpoints import Uploads, warn_if_slow
from job.children import run_child, train_command
from job.contract.documents import Fingerprint, Published, TrainSummary
from job.contract.errors import InterruptedRun, JobError, KilledError
from job.contract.events import Saved
from job.contract.plan import Plan
from job.hearing import Heard
from job.interruption import Interruption
from job.model_card import clean_adapter, write_model_card
from job.preparation import Inputs
from job.publishing import mark_published, publish_adapter
from job.run import Run
from job.scratch import Scratch
from job.settings import Settings
from job.stack import stack_versions
from job.watchdog import Watchdog


def fingerprint_of(run: Run) -> Fingerprint:
    """What a checkpoint of this run can be gone on from with, here and now."""
    gpus = run.spec.gpus
    return Fingerprint(
        spec_sha256=run.spec_sha256,
        versions=stack_versions(),
        device="gpu" if gpus else "cpu",
        world_size=max(1, gpus),
    )


def train(
    attempt: Attempt,
    plan: Plan,
    inputs: Inputs,
    scratch: Scratch,
    variables: Mapping[str, str],
    settings: Settings,
    heard: Heard,
    interruption: Interruption,
) -> Published:
    """Trains to the end, and publishes the adapter.

    Raises:
        InterruptedRun: it was told to stop, and the checkpoint is in the store.
        KilledError: it was told to stop, and the checkpoint is not.
        JobError: what else ended it; the newest checkpoint was then waited for.
    """
    published: list[Published] = []
    uploads = Uploads(attempt, fingerprint_of(attempt.run), scratch.uploads)

    def keep(saved: Saved) -> None:
        uploads.add(saved)
        shutil.rmtree(scratch.resumed, ignore_errors=True)  # loaded long ago

    def publish(summary: TrainSummary) -> None:
        ready_adapter(attempt.run, inputs, scratch, summary, heard.versions)
        published.append(publish_adapter(attempt, scratch.lora, summary, heard.versions))
        interruption.release()

    heard.on_loaded = lambda loaded: warn_if_slow(attempt.run, loaded, scratch.work, settings.grace_seconds)
    heard.on_training = lambda _: interruption.hold(scratch.stop.touch)
    heard.on_saved, heard.on_trained = keep, publish
    try:
        command, watchdog = train_command(scratch.plan, plan.gpus), Watchdog(settings.watchdog_seconds)
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
    except JobError as error:
        is_kept = uploads.finish(settings.grace_seconds)
        if isinstance(error, InterruptedRun) and not is_kept:
            raise KilledError(f"{error.message}, and its checkpoint was not kept", "", signal.SIGTERM) from error
        raise
    finally:
        uploads.close()
    if heard.summary == heard.trained:
        return published[0]
    return mark_published(attempt, published[0].model_copy(update={"train": heard.summary}))  # with the last evaluation


def ready_adapter(
    this: Run, inputs: Inputs, scratch: Scratch, summary: TrainSummary, versions: Mapping[str, str]
) -> None:
    """The copy of the adapter that is published: with a model card, and without a path of this machine."""
    shutil.copytree(scratch.adapter, scratch.lora)
    write_model_card(
        scratch.lora,
        run_id=this.run_id,
        recipe=this.spec.recipe,
        base=inputs.base,
        summary=summary,
        versions=versions,
    )
    clean_adapter(scratch.lora, this.spec.base_model, scratch.root)
