"""The verdict on a run: from its Job, its pods and its documents to one phase. Pure."""

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from job.contract.documents import Stage
from job.contract.model import Document
from launcher.categories import RESOLUTIONS, Category
from launcher.evidence import Evidence, Json
from launcher.runs import RunDocuments


class Phase(StrEnum):
    """Where a run stands. Stable words: others compare them."""

    UNKNOWN = "Unknown"
    QUEUED = "Queued"
    PENDING = "Pending"
    RUNNING = "Running"
    RECOVERING = "Recovering"
    FAILING = "Failing"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


_TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})


class RunStatus(Document):
    """How a run is, in one object."""

    schema_version: Literal[1] = 1
    run_id: str
    phase: Phase
    terminal: bool
    """Whether it stays so, unless somebody launches it again."""
    reason: str
    """One word for machines: ours, the Job's own, or the name of an exit code."""
    message: str
    """One sentence for people."""
    resolution: str = ""
    """What to do; empty when there is nothing to advise."""
    attempt: int | None = None
    """The newest attempt, or the one that published the result."""
    stage: Stage | None = None
    """The newest attempt's, as are step, of and loss; null before it tells, and of a result."""
    step: int | None = None
    of: int | None = None
    loss: float | None = None
    """A result's is the mean over the last steps."""
    eta_seconds: float | None = None
    """To the end of the stage; null unless it runs."""
    exit_code: int | None = None
    """How the last attempt ended; null while one runs, or where nobody knows."""
    job_uid: str | None = None
    """Null when there is no Job."""
    artifacts: dict[str, str] = {}
    """Of a result: the directory of each kind that it has, as a URI."""


def read_status(
    job: Json | None, pods: Sequence[Json] | None, documents: RunDocuments, now: datetime | None = None
) -> RunStatus:
    """The verdict on a run.

    To be read in this order: the Job, its pods, the documents. Then no Job is seen complete before its result.

    Args:
        job: as the API server tells it in JSON; None when it has none of that name.
        pods: those of this Job; None when they are not known.
        documents: what the store holds.
        now: the API server's time; None where it was not asked.
    """
    run = Evidence(job or {}, pods, documents, now)
    row = next(row for row in _TABLE if row.holds(run))
    return RunStatus(
        run_id=documents.run_id,
        phase=row.phase,
        terminal=row.phase in _TERMINAL,
        reason=row.reason.format(run),
        message=row.message.format(run),
        resolution=row.resolution.format(run),
        job_uid=run.uid,
        **_progress(run, row.phase),
    )


def ended_by_store(documents: RunDocuments) -> RunStatus | None:
    """The verdict where no cluster can be asked: that of a run which has its result, else None.

    Whatever else the store tells may be over: a Job that nobody can see may go on from there.
    """
    return read_status(None, None, documents) if documents.result else None


def _progress(run: Evidence, phase: Phase) -> dict[str, Any]:
    """How far it came, and how it ended."""
    if result := run.documents.result:
        trained = {"step": result.train.steps, "of": result.train.steps, "loss": result.train.train_loss}
        folders = {
            kind: f"{run.documents.root}/{files[0].key.partition(f'/{kind}/')[0]}/{kind}/"
            for kind, files in result.artifacts
            if files
        }
        return {"attempt": result.attempt, "exit_code": 0, "artifacts": folders, **trained}
    runs = phase == Phase.RUNNING
    told: dict[str, Any] = {"attempt": run.attempt, "exit_code": None if runs else run.exit_code}
    lease = run.documents.lease
    if lease and lease.attempt == run.attempt:  # else it is an older attempt's
        told |= lease.model_dump(include={"stage", "step", "of", "loss"})
        told["eta_seconds"] = lease.eta_seconds if runs else None
    return told


class _Row(NamedTuple):
    phase: Phase
    reason: str
    holds: Callable[[Evidence], Any]
    message: str
    resolution: str = ""


_LAUNCH = "`launch` goes on from the newest checkpoint."
_LOGS = "`finetune logs {0.documents.run_id}` shows what it does."
_OUT_OF_SERVICE = RESOLUTIONS[Category.NODE_LOST].format(node="{0.lost_node}")

# The first row that holds is the verdict. Its texts are formatted with the evidence.
_TABLE = (
    # result.json is the commit mark: whatever else is to be seen, nothing is left to do. Without it nothing succeeded.
    _Row(Phase.SUCCEEDED, "Published", lambda run: run.documents.result, "its result is published"),
    _Row(Phase.CANCELLED, "Cancelled", lambda run: run.cancelled, "{0.documents.cancelled.by} cancelled it", _LAUNCH),
    # The two conditions that a Job ends with. A container's exit 0 proves nothing: one of its processes may have been
    # killed, or it may have met SIGTERM.
    _Row(
        Phase.FAILED,
        "{0.job_reason}",
        lambda run: run.has("Failed"),
        "its Job failed ({0.job_reason}): {0.why_failed}",
        "{0.advice}",
    ),
    _Row(
        Phase.FAILED,
        "NoResult",
        lambda run: run.has("Complete"),
        "its Job is Complete, and yet left no result: {0.ending}",
        "{0.advice}",
    ),
    # A Job that fails waits for its pods, and for ever when their node is lost. That is an end, unless the attempt
    # there still reaches the store.
    _Row(
        Phase.FAILED,
        "NodeLost",
        lambda run: run.has("FailureTarget") and run.lost_node and not run.beats,
        "its Job fails ({0.job_reason}), and cannot end because the node {0.lost_node} is lost",
        _OUT_OF_SERVICE,
    ),
    # On the way to such a condition. No verdict: pods still end, and may still publish.
    _Row(
        Phase.FAILING,
        "{0.job_reason}",
        lambda run: run.has("FailureTarget"),
        "its Job fails ({0.job_reason}), and its pods are ending",
    ),
    _Row(
        Phase.FAILING,
        "NoResult",
        lambda run: run.has("SuccessCriteriaMet"),
        "its container exited with 0 and left no result",
    ),
    _Row(
        Phase.FAILING,
        "JobDeleted",
        lambda run: run.deleted,
        "its Job is being deleted, and its pods are ending",
    ),
    # The Job lives.
    _Row(
        Phase.QUEUED,
        "WaitsForQuota",
        lambda run: run.suspended and run.queue,
        "it waits for quota in the queue {0.queue}",
    ),
    _Row(
        Phase.QUEUED,
        "Suspended",
        lambda run: run.suspended,
        "its Job is suspended",
        "It starts when its spec.suspend is set to false.",
    ),
    _Row(Phase.RUNNING, "Beating", lambda run: run.ours and run.beats, "{0.holder} runs"),
    _Row(
        Phase.RECOVERING,
        "NodeLost",
        lambda run: run.lost_node,
        "the node {0.lost_node} is lost, and no other pod starts before it is back or given up",
        _OUT_OF_SERVICE,
    ),
    # Our pod waits for the other attempt to fall silent, and ends with 73 when it does not.
    _Row(
        Phase.RUNNING,
        "RunsElsewhere",
        lambda run: run.running and run.beats,
        "{0.holder} runs, and is not of this Job",
    ),
    _Row(
        Phase.RECOVERING,
        "Silent",
        lambda run: run.silent,
        "{0.holder} has given no sign of life for {0.silence}",
        _LOGS,
    ),
    _Row(
        Phase.RECOVERING,
        "AttemptEnded",
        lambda run: run.ours or run.ended_pod,
        "another attempt is to come: {0.ending}",
    ),
    # No attempt of this Job yet. What comes before a claim has no limit in time.
    _Row(Phase.RUNNING, "Starting", lambda run: run.starts, "its pod has just started"),
    _Row(Phase.RUNNING, "NoHeartbeat", lambda run: run.running, "its pod runs, and has not claimed the run yet", _LOGS),
    _Row(
        Phase.PENDING,
        "NoPodRuns",
        lambda run: run.job,
        "no pod of it runs yet",
        "`finetune why {0.documents.run_id}` says what it waits for.",
    ),
    # There is no Job: the store alone knows.
    _Row(
        Phase.RUNNING,
        "RunsElsewhere",
        lambda run: run.beats,
        "{0.holder} runs, and its Job is not to be seen here",
    ),
    _Row(
        Phase.FAILED,
        "{0.outcome.name}",
        lambda run: run.outcome and run.outcome.code,
        "no Job of it is to be seen, and it left no result: {0.ending}",
        "{0.advice}",
    ),
    _Row(
        Phase.FAILED,
        "JobGone",
        lambda run: run.attempt,
        "its Job is gone, and it left no result",
        _LAUNCH,
    ),
    _Row(
        Phase.PENDING,
        "NoJobHere",
        lambda run: run.documents.exists,
        "no Job here and no attempt yet: it may be queued in another cluster or namespace",
        "`launch` creates its Job here.",
    ),
    _Row(Phase.UNKNOWN, "NoSuchRun", lambda run: True, "there is no such run, and no Job of its name"),
)
