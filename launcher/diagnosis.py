"""Why a run does not go on: from its Job, pods, events and documents to one cause and what to do about it. Pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from job.contract.errors import RAISE_MEMORY
from job.contract.model import Document
from launcher.categories import RESOLUTIONS, Category, facts, of_exit, of_refusal, of_scheduling, of_waiting
from launcher.evidence import Evidence, Json, at, condition_of, happened, has_ended, moment, trainer_of
from launcher.runs import RunDocuments

Speaker = Literal["API server", "controller manager", "scheduler", "kubelet", "Kueue", "job", "launcher"]


class Diagnosis(Document):
    """One cause, in whose words, and what to do about it."""

    schema_version: Literal[1] = 1
    category: Category
    summary: str
    """What is wrong."""
    said: str = ""
    """The same in the words of whoever found it, verbatim; empty where nobody said anything."""
    by: Speaker
    """Whose words."""
    resolution: str
    """What to do."""

    @property
    def text(self) -> str:
        """All of it as one paragraph."""
        summary, words = f"{self.summary[:1].upper()}{self.summary[1:]}.", " ".join(self.said.split())
        if not words:
            return f"{summary} {self.resolution}"
        speaker = self.by if self.by == "Kueue" else f"The {self.by}"
        return f"{summary} {speaker} says: “{words}”{'' if words.endswith('.') else '.'} {self.resolution}"


class _Cause(NamedTuple):
    category: Category
    said: str = ""
    by: Speaker = "launcher"
    resolution: str = ""
    """Better than the category's."""


def diagnose(
    job: Json | None,
    pods: Sequence[Json] | None,
    events: Sequence[Json],
    documents: RunDocuments,
    now: datetime | None,
    queue_exists: bool = True,
) -> Diagnosis | None:
    """Why a run does not go on; None when nothing is wrong, it is over and well, or somebody cancelled it.

    Args:
        job: as the API server tells it in JSON; None when it has none of that name.
        pods: those of this Job; None when they are not known.
        events: of the Job, of its pods, also of those that have gone, of its Kueue Workload, and of its CronJob.
        documents: what the store holds.
        now: the API server's time; None where it was not asked.
        queue_exists: whether the LocalQueue that it names is there; Kueue says so in no event.
    """
    run = Evidence(job or {}, pods, documents, now)
    cause = _cause(run, sorted(events, key=happened), queue_exists)
    if not cause:
        return None
    told = facts(run)
    return Diagnosis(
        category=cause.category,
        summary=cause.category.summary.format(**told),
        said=cause.said,
        by=cause.by if cause.said else "launcher",
        resolution=cause.resolution or RESOLUTIONS[cause.category].format(**told),
    )


def _cause(run: Evidence, events: Sequence[Json], queue_exists: bool) -> _Cause | None:
    """Where the run stands decides who is asked, newest evidence first; the first one that answers wins."""
    if run.documents.result or run.cancelled:
        return None
    lost = _Cause(Category.NODE_LOST) if run.lost_node and not run.beats else None
    if run.has("Failed") or run.has("FailureTarget"):
        return (None if run.has("Failed") else lost) or _failed(run, events)
    if run.has("Complete") or run.has("SuccessCriteriaMet"):
        return _ending(run) or _Cause(Category.COMPLETE_WITHOUT_RESULT)
    if run.deleted:
        return lost or _Cause(Category.DELETED)
    if not run.job:
        return None if run.beats else _ending(run) or _gone(run) or _by_event(_newest_step(events))
    if run.suspended:
        return _suspended(run, events, queue_exists)
    if found := lost or _disruption(run.newest_pod):
        return found
    if run.ours and run.beats:
        return None
    if run.silent:
        return _Cause(Category.SILENT)
    if run.running:
        return None
    return _refusal(run, events) or _waiting(run.newest_pod, events) or _ending(run)


# A Job that has ended, or does not start


def _failed(run: Evidence, events: Sequence[Json]) -> _Cause | None:
    """A deadline is the cause only of what ran: what never did was held up by something, whoever ended it."""
    told = run.job_message
    if run.job_reason == "DeadlineExceeded":
        held = None if _has_run(run) else _waiting(run.newest_pod, events) or _by_event(_newest_step(events))
        if run.ended_because:
            more_time = f"{run.anew} tries again; a longer --start-timeout gives it more time."
            return held or _Cause(Category.DEADLINE_EXCEEDED, run.ended_because, "launcher", more_time)
        return held or _Cause(Category.DEADLINE_EXCEEDED, told, "controller manager")
    if found := _ending(run):
        return found
    code = re.search(r"failed with exit code (\d+)", told)
    return _Cause(of_exit(int(code[1])) if code else Category.JOB_FAILED, told, "controller manager")


def _gone(run: Evidence) -> _Cause | None:
    return _Cause(Category.DELETED) if run.documents.exists else None


def _suspended(run: Evidence, events: Sequence[Json], queue_exists: bool) -> _Cause:
    if not run.queue:
        return _Cause(Category.SUSPENDED)
    pending = [_message(event) for event in events if at(event, "reason") in ("Pending", "Inadmissible")]
    said = pending[-1] if pending else ""
    missing = not queue_exists or re.search(r"LocalQueue \S+ doesn't exist", said)
    return _Cause(Category.QUEUE_MISSING if missing else Category.QUEUED, said, "Kueue")


def _has_run(run: Evidence) -> bool:
    """Whether a container of this Job has ever started."""
    states = [at(trainer_of(pod), "state") for pod in run.pods or ()]
    started = (at(state, "running") or at(state, "terminated", "startedAt") for state in states)
    return run.ours or any(started)


# Events

_STEPS = ("FailedCreate", "SuccessfulCreate", "JobAlreadyActive", "TooManyMissedTimes")
# What only repeats a container's state, or an end that was asked for.
_NOISE = re.compile(r"Error: \w+$|Back-off pulling image|skip schedule deleting pod")
# A kubelet's warnings after which it goes on.
_HARMLESS = frozenset({"MissingClusterDNS", "DNSConfigForming", "FailedToRetrieveImagePullSecret"})


def _newest_step(events: Sequence[Json]) -> Json | None:
    """What was done last to make a pod, or with one: other words of a controller are no step."""
    of_pods = [e for e in events if at(e, "involvedObject", "kind") == "Pod" and at(e, "reason") not in _HARMLESS]
    # Whatever is told of a pod comes after its making, also when that is told later.
    making = {f"Created pod: {at(event, 'involvedObject', 'name')}" for event in of_pods}
    steps = [e for e in events if e in of_pods or (at(e, "reason") in _STEPS and _message(e) not in making)]
    return _last([event for event in steps if not _NOISE.match(_message(event)) and not _is_another_pull(event)])


def _is_another_pull(event: Json) -> bool:
    """Whether an image is pulled once more: until it is there, what was said of the first try holds."""
    return at(event, "reason") == "Pulling" and (at(event, "count") or 1) > 1


def _by_event(event: Json | None) -> _Cause | None:
    """What an event says is wrong, None for one of progress."""
    said, reason = _message(event), at(event, "reason")
    if reason == "FailedCreate":
        return _Cause(of_refusal(said), said, "API server")
    if reason == "FailedScheduling":
        return _Cause(of_scheduling(said), said, "scheduler")
    if reason in _STEPS[2:]:
        return _Cause(Category.NIGHT_SKIPPED, said, "controller manager")
    if reason == "Preempted":
        return _Cause(Category.PREEMPTED, said, "scheduler")
    if at(event, "type") != "Warning":
        return None
    of_image = re.search(r"(?i)\bimage\b", said)
    return _Cause(Category.IMAGE_PULL if of_image else Category.CONTAINER_CANNOT_START, said, "kubelet")


def _refusal(run: Evidence, events: Sequence[Json]) -> _Cause | None:
    """Why no other pod is made. One that was made since says that it is history."""
    step = _last([event for event in events if at(event, "reason") in _STEPS[:2]])
    made = moment(at(run.newest_pod, "metadata", "creationTimestamp"))
    if at(step, "reason") != "FailedCreate" or (run.newest_pod and (made is None or happened(step) <= made)):
        return None
    return _by_event(step)


# A pod that waits

_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


def _waiting(pod: Json | None, events: Sequence[Json]) -> _Cause | None:
    """Why a pod does not run: what its containers wait for, then the scheduler's words, then its newest event."""
    if pod is None or has_ended(pod):
        return None
    statuses = [*(at(pod, "status", "initContainerStatuses") or ()), *(at(pod, "status", "containerStatuses") or ())]
    for waiting in (at(status, "state", "waiting") for status in statuses):
        reason = at(waiting, "reason")
        if reason and reason not in _STARTING:
            return _Cause(of_waiting(reason), at(waiting, "message") or reason, "kubelet")
    if said := at(condition_of(pod, "PodScheduled", "False"), "message"):
        return _Cause(of_scheduling(said), said, "scheduler")
    name = at(pod, "metadata", "name")
    return _by_event(_newest_step([e for e in events if name and at(e, "involvedObject", "name") == name]))


# A pod that ended

_DISRUPTORS: Mapping[str, Speaker] = {"TerminationByKubelet": "kubelet", "EvictionByEvictionAPI": "API server"}


def _disruption(pod: Json | None) -> _Cause | None:
    """Who took the pod away, also while it still ends."""
    if at(pod, "status", "reason") == "Evicted":
        return _Cause(Category.EVICTED, at(pod, "status", "message") or "Evicted", "kubelet")
    condition = condition_of(pod, "DisruptionTarget")
    if condition is None:
        return None
    reason = at(condition, "reason") or ""
    said = at(condition, "message") or reason
    if reason == "PreemptionByScheduler":
        return _Cause(Category.PREEMPTED, said, "scheduler")
    return _Cause(Category.DISRUPTED, said, _DISRUPTORS.get(reason, "controller manager"))


def _ending(run: Evidence) -> _Cause | None:
    """How the newest attempt ended."""
    pod, code, outcome = run.ended_pod, run.exit_code, run.outcome
    if found := _disruption(pod):
        return found
    state = at(trainer_of(pod), "state", "terminated")
    reason, message = at(state, "reason") or "", at(state, "message") or ""
    if code is None:  # the trainer's container was never there
        said = at(pod, "status", "message") or at(pod, "status", "reason") or ""
        return _Cause(Category.KUBELET_REFUSED, said, "kubelet") if pod else None
    told: tuple[str, Speaker]
    if outcome:
        told = outcome.message, "job"
    elif message and reason != "StartError":
        told = "\n".join(message.strip().splitlines()[-3:]), "job"  # its log's last lines
    else:
        told = message or reason, "kubelet"
    # The supervisor lives to tell of a child that was killed, and speaks of memory unless the kernel did not do it.
    if code == 137 and outcome and outcome.code == 137 and outcome.resolution.startswith(RAISE_MEMORY):
        return _Cause(Category.CHILD_OUT_OF_MEMORY, *told)
    if reason == "OOMKilled":
        return _Cause(Category.OUT_OF_MEMORY if code == 137 else Category.CHILD_OUT_OF_MEMORY, reason, "kubelet")
    return _Cause(of_exit(code), told[0], told[1], outcome.resolution if outcome else "")


# Plain JSON of Kubernetes


def _message(event: Json | None) -> str:
    return at(event, "message") or ""


def _last(events: Sequence[Json]) -> Json | None:
    return events[-1] if events else None
