"""How an attempt ended: from whatever ended it to one document."""

from pathlib import Path

from job.contract.documents import Outcome
from job.contract.errors import BugError, InterruptedRun, JobError, KilledError, LocalIOError, is_of_disk
from job.contract.exits import Exit, exit_name
from job.contract.model import canonical_bytes
from job.interruption import Overtaken, ToldToStop
from job.redaction import blanked, secrets_of
from job.stages import Stages

_MAX_BYTES = 4096  # what Kubernetes keeps of a termination message
_MAX_MESSAGE, _MAX_RESOLUTION = 3000, 500  # characters


def error_of(error: BaseException) -> JobError:
    """What ended the run, in the words of the table."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, ToldToStop):
        return InterruptedRun("ended by SIGTERM, with nothing left to save", "Start it again: it goes on from there.")
    if isinstance(error, Overtaken):
        return error.by
    if isinstance(error, KeyboardInterrupt):
        return KilledError("interrupted from the keyboard", "", 2)
    said = f"{type(error).__name__}: {error}"
    if is_of_disk(error):
        return LocalIOError(f"the scratch disk cannot be written: {said}", "Raise compute.scratch_gib.")
    return BugError(said, "This should not happen; the traceback is in the log.")


def outcome_of(error: BaseException | None, stages: Stages) -> Outcome:
    """The outcome of an attempt that ended by `error`, or well."""
    if error is None:
        return Outcome(code=Exit.OK, name=Exit.OK.name, stage=stages.current, step=stages.step, message="done")
    ending, secrets = error_of(error), secrets_of()
    return Outcome(
        code=ending.code,
        name=exit_name(ending.code),
        stage=stages.current,
        step=stages.step,
        message=blanked(ending.message, secrets)[:_MAX_MESSAGE],
        resolution=blanked(ending.resolution, secrets)[:_MAX_RESOLUTION],
    )


def write_termination_message(path: Path, outcome: Outcome) -> None:
    """Tells Kubernetes, in at most 4 KiB; a path that cannot be written is nobody's fault outside a pod."""
    body = canonical_bytes(outcome)
    length = len(outcome.message)
    while len(body) > _MAX_BYTES and length > 0:
        length -= len(body) - _MAX_BYTES
        body = canonical_bytes(outcome.model_copy(update={"message": outcome.message[: max(0, length)]}))
    try:
        path.write_bytes(body)
    except OSError:
        return
