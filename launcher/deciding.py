"""What a launch has to do, from what is to be seen of the run: a launch and its dry run decide alike. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from job.contract.documents import Spec
from job.contract.errors import JobError, TakenError
from job.contract.model import Document, canonical_bytes, differences, sha256_hex
from launcher.evidence import Evidence, at, ended
from launcher.manifest import SPEC_SHA256, is_ours

_DIFFERENCES_SHOWN = 8
_ANOTHER_NAME = "Give this config another name"
# What a Job tells of its spec without its inputs.
_OUTLINE = {"recipe", "gpus", "image", "code_version"}


class RunFailed(JobError):
    """A run's Job has ended and left no result."""


class Action(StrEnum):
    """What a launch does."""

    NOTHING = "nothing"
    """The run has its result."""
    ATTACH = "attach"
    """Its Job is there, and goes on."""
    REPLACE = "replace"
    """Its Job has ended or is being deleted, and is made anew once it is gone."""
    CREATE = "create"


@dataclass(frozen=True)
class Seen:
    """What is to be seen of a run that is to be launched."""

    run: Evidence
    """Its Job and its documents."""
    namespace: str
    """Where its Job is, or would be."""
    site: str | None = None
    """This cluster's name; None where it is not known."""
    theirs: Spec | None = None
    """What a Job of that name trains that is not this run's, without its inputs; None where the store does not tell."""
    replaced: str | None = None
    """The uid of a Job that was here until this launch deleted it."""


class LaunchPlan(Document):
    """What `launch` would do."""

    schema_version: Literal[1] = 1
    run_id: str
    namespace: str
    action: Action
    message: str


def decide(spec: Spec, frozen: bool, seen: Seen, resume: bool = False) -> Action:
    """What a launch has to do.

    Args:
        spec: of the run.
        frozen: whether it pins its inputs; else the first attempt does, and the spec in the store is another.
        seen: what is to be seen of it.
        resume: whether a Job that has ended without a result is to be replaced.

    Raises:
        TakenError: the run id or the Job belongs to another spec, or an attempt of another Job lives.
        RunFailed: its Job has ended without a result, and `resume` was not asked for.
    """
    run, standing = seen.run, seen.run.documents.spec
    run_id = run.documents.run_id
    if frozen and standing and standing != spec:
        changed = _in_words(differences(standing.model_dump(mode="json"), spec.model_dump(mode="json")))
        raise TakenError(f"{run_id} is a run of another spec: {changed}", f"{_ANOTHER_NAME}.")
    if run.documents.result:
        return Action.NOTHING
    if run.job and not is_ours(run.job):
        raise TakenError(
            f"the Job {run_id} does not carry the launcher's labels",
            f"{_ANOTHER_NAME}, or delete that Job if it is yours.",
        )
    if run.job and (other := _other_spec(spec, seen)):
        message = f"the Job {run_id} belongs to another spec: {other}"
        raise TakenError(message, f"{_ANOTHER_NAME}, or delete that Job if it is yours.")
    how = ended(run.job)
    if run.job and not run.deleted and not (how and resume):
        if how is None:
            return Action.ATTACH
        raise RunFailed(
            f"the Job {run_id} has ended ({how}) and the run has no result",
            f"`finetune why {run_id}` says why. Then launch with --resume to go on, or with --again for a fresh run.",
        )
    if lives_elsewhere(seen):
        raise TakenError(
            f"{run_id} is run by another Job: {run.holder} gave a sign of life {run.silence} ago",
            "Wait for it, or cancel it where it runs.",
        )
    return Action.REPLACE if run.job else Action.CREATE


def plan(action: Action, seen: Seen) -> LaunchPlan:
    """What was decided, in words that follow the run id."""
    run = seen.run
    cancelled = run.documents.cancelled if run.cancelled else None
    was = f"was cancelled by {cancelled.by}, and " if cancelled else ""
    created = f"{was}would be created{' anew' if cancelled or run.job else ''} in {seen.namespace}"
    how = ended(run.job)
    message = {
        Action.NOTHING: "has its result already: nothing would be done",
        Action.ATTACH: f"would find its Job in {seen.namespace}",
        Action.REPLACE: f"{created}: its Job {f'has ended ({how})' if how else 'is being deleted'}",
        Action.CREATE: created,
    }[action]
    return LaunchPlan(run_id=run.documents.run_id, namespace=seen.namespace, action=action, message=message)


def lives_elsewhere(seen: Seen) -> bool:
    """Whether an attempt of a run lives that is of no Job here: one of this namespace is of a Job that was deleted."""
    claim = seen.run.documents.claim
    here = claim is not None and (
        (claim.job_uid is not None and claim.job_uid in (seen.run.uid, seen.replaced))
        or (claim.namespace == seen.namespace and seen.site in (None, claim.site))
    )
    gone = replace(seen.run, job={})
    return gone.beats and not gone.cancelled and not here


def _other_spec(spec: Spec, seen: Seen) -> str | None:
    """How the spec of the Job of that name differs; None when it is this one. The annotation tells: Kueue changes templates."""
    ours, theirs = sha256_hex(canonical_bytes(spec)), at(seen.run.job, "metadata", "annotations", SPEC_SHA256)
    if theirs == ours:
        return None
    hashes = f"{theirs or 'it names none'}, not {ours}"
    if seen.theirs is None:
        return f"{hashes}; neither its spec nor its config is in the store, so what differs is not known"
    changed = differences(_outline(seen.theirs), _outline(spec))
    return _in_words(changed) if changed else f"{hashes}; the config is the same, so its inputs are others"


def _outline(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json", include=_OUTLINE)


def _in_words(changed: list[str]) -> str:
    more = len(changed) - _DIFFERENCES_SHOWN
    return "; ".join(changed[:_DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
