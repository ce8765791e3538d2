"""What a Job, its pods and its documents say together. Pure.

Kubernetes' objects are plain JSON, and any field may be missing: a pod that the kubelet refused has no containerStatuses,
and an older API server lacks what a newer one tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from job.contract.documents import STALE_SECONDS, Outcome
from job.contract.exits import exit_name
from launcher.manifest import CONTAINER, ENDED_BECAUSE, QUEUE
from launcher.runs import RunDocuments

Json = Mapping[str, Any]

_STALE = timedelta(seconds=STALE_SECONDS)
# A pod's deletionTimestamp is the end of its grace period, at which its kubelet kills it: one that is still there so
# long after has no kubelet.
_LOST = timedelta(seconds=60)


@dataclass(frozen=True)
class Evidence:
    """Everything that is to be seen of a run.

    Args:
        job: empty when there is none.
        pods: the Job's; None when they are not known.
        documents: what the store holds.
        now: the API server's time; None where it was not asked, and so there are no pods either.
    """

    job: Json
    pods: Sequence[Json] | None
    documents: RunDocuments
    now: datetime | None = None

    # The Job

    @property
    def uid(self) -> str | None:
        uid: str | None = at(self.job, "metadata", "uid")
        return uid

    @property
    def suspended(self) -> bool:
        return bool(at(self.job, "spec", "suspend"))

    @property
    def queue(self) -> str | None:
        """Kueue's queue."""
        queue: str | None = at(self.job, "metadata", "labels", QUEUE)
        return queue

    @property
    def schedule(self) -> str | None:
        """The CronJob whose night it is; None of a run that was launched."""
        owners: Sequence[Json] = at(self.job, "metadata", "ownerReferences") or ()
        return next((at(owner, "name") for owner in owners if at(owner, "kind") == "CronJob"), None)

    @property
    def deleted(self) -> bool:
        """Whether it is there only until its pods have ended."""
        return bool(at(self.job, "metadata", "deletionTimestamp"))

    def has(self, condition: str) -> bool:
        """Whether a condition of the Job is true."""
        return condition_of(self.job, condition) is not None

    @property
    def job_reason(self) -> str:
        """Why the Job fails, in its own word."""
        return self._failure("reason") or "JobFailed"

    @property
    def job_message(self) -> str:
        """The same in its own words."""
        return self._failure("message") or ""

    @property
    def ended_because(self) -> str | None:
        """Why the launcher ended it; None when it did not."""
        reason: str | None = at(self.job, "metadata", "annotations", ENDED_BECAUSE)
        return reason

    @property
    def why_failed(self) -> str:
        """Why the Job fails: because the launcher ended it, else what its last attempt told, else in its own words."""
        told = self.ending if self.exit_code is not None else self.job_message or self.ending
        return self.ended_because or told

    def _failure(self, field: str) -> str | None:
        told: str | None = at(condition_of(self.job, "Failed") or condition_of(self.job, "FailureTarget"), field)
        return told

    # Its pods

    @property
    def newest_pod(self) -> Json | None:
        """The one that was made last."""
        return max(self.pods or (), key=_created, default=None)

    @property
    def running(self) -> Json | None:
        """A pod whose container runs."""
        pods = self.pods or ()
        return next((pod for pod in pods if at(pod, "status", "phase") == "Running" and not has_ended(pod)), None)

    @property
    def starts(self) -> bool:
        """Whether a pod runs, for so short a time that its claim is not to be expected."""
        age = self._age(at(trainer_of(self.running), "state", "running", "startedAt"))
        return self.running is not None and (age is None or age < _STALE)

    @property
    def lost_node(self) -> str | None:
        """The node of a pod that has outlived its own deletion."""
        for pod in self.pods or ():
            age = self._age(at(pod, "metadata", "deletionTimestamp"))
            if age is not None and not has_ended(pod) and age > _LOST:
                node: str | None = at(pod, "spec", "nodeName")  # none: it was never started
                return node
        return None

    def _age(self, since: str | None) -> timedelta | None:
        """How long ago that was, by the clock of the API server, which told it."""
        when = moment(since)
        return self.now - when if self.now and when else None

    # The newest attempt

    @property
    def attempt(self) -> int | None:
        newest = self.documents.claim or self.documents.lease
        return newest.attempt if newest else None

    @property
    def holder(self) -> str:
        """The attempt, and where it is."""
        claim = self.documents.claim
        known = claim.model_dump(include={"site", "namespace", "pod"}) if claim else {}
        where = ", ".join(f"{name} {value}" for name, value in known.items() if value)
        return f"attempt {self.attempt}{f' ({where})' if where else ''}"

    @property
    def ours(self) -> bool:
        """Whether it is this Job's."""
        claim = self.documents.claim
        return claim is not None and bool((claim.job_uid and claim.job_uid == self.uid) or self._pod)

    @property
    def beats(self) -> bool:
        """Whether it lives. A claim is the first heartbeat; that of a pod which has ended or gone was its last."""
        claim, age = self.documents.claim, self.documents.lease_age
        if self.documents.outcome or age is None or age >= _STALE:
            return False
        if self._pod:
            return not has_ended(self._pod)
        return not (self.ours and self.pods is not None and claim and claim.pod)

    @property
    def silent(self) -> bool:
        """Whether it is this Job's, runs, and yet does not beat."""
        return bool(self._pod and not has_ended(self._pod) and not self.beats and not self.documents.outcome)

    @property
    def silence(self) -> str:
        """For how long it has not beaten."""
        age = self.documents.lease_age
        return f"{age.total_seconds():.0f} s" if age is not None else "unknown time"

    @property
    def cancelled(self) -> bool:
        """Whether cancelled.json counts: no later launch is to be seen, and nothing beats elsewhere."""
        cancelled, claim = self.documents.cancelled, self.documents.claim
        if cancelled is None or (self.job and (self.uid is None or self.uid != cancelled.job_uid)):
            return False
        if claim is None or (claim.job_uid and claim.job_uid == cancelled.job_uid):
            return True
        return claim.attempt <= cancelled.attempt and not self.beats

    @property
    def _pod(self) -> Json | None:
        """Its pod, as far as it is to be seen."""
        name = self.documents.claim.pod if self.documents.claim else None
        return next((pod for pod in self.pods or () if name and at(pod, "metadata", "name") == name), None)

    # How the last one ended

    @property
    def ended_pod(self) -> Json | None:
        """The pod that ended last; None as long as the newest attempt's own goes on."""
        if (self.ours and self.beats) or (self._pod and not has_ended(self._pod)):
            return None
        ended = [pod for pod in self.pods or () if has_ended(pod)]
        return max(ended, key=_created, default=None)

    @property
    def outcome(self) -> Outcome | None:
        """What it told. One that ended before its claim told Kubernetes alone; one of another Job's tells nothing here."""
        pod = self.ended_pod
        if told := _told(pod):
            return told
        is_its_own = pod is None or pod is self._pod
        return self.documents.outcome if is_its_own and (self.ours or not self.job) else None

    @property
    def exit_code(self) -> int | None:
        """The container's, else what was told; None where nobody knows."""
        code: int | None = at(trainer_of(self.ended_pod), "state", "terminated", "exitCode")
        return self.outcome.code if code is None and self.outcome else code

    @property
    def ending(self) -> str:
        """All this in words."""
        if self.exit_code is None:
            return "it did not tell how it ended"
        told = f" in the stage {self.outcome.stage}: {self.outcome.message}" if self.outcome else ""
        return f"it ended with {self.exit_code} {exit_name(self.exit_code)}{told}"

    @property
    def advice(self) -> str:
        """What it advised, else how to go on."""
        return (self.outcome and self.outcome.resolution) or f"{self.going_on}."

    @property
    def anew(self) -> str:
        """The command that makes another Job of it once this one has ended."""
        name = self.schedule  # a night's run id is its Job's name, which no config gives
        return f"`{one_more_night(name)}`" if name else "`launch --resume`"

    @property
    def going_on(self) -> str:
        """The same, and from where that Job goes on."""
        how = "trains anew before the next night" if self.schedule else "goes on from the newest checkpoint"
        return f"{self.anew} {how}"


def one_more_night(schedule: str) -> str:
    """The command that starts one. Each needs a name of its own, which is its run id."""
    return f"kubectl create job --from=cronjob/{schedule} {schedule}-$(date +%s)"


def at(tree: Any, *path: str) -> Any:
    """What stands at a path in an object of Kubernetes; None where a part of it is missing."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def moment(text: str | None) -> datetime | None:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text) if text else None


def condition_of(told: Json | None, kind: str, status: str = "True") -> Json | None:
    """A condition of a Job or a pod, if it is so."""
    conditions: Sequence[Json] = at(told, "status", "conditions") or ()
    return next((one for one in conditions if at(one, "type") == kind and at(one, "status") == status), None)


def ended(job: Json) -> str | None:
    """`Complete` or `Failed` once a Job has that condition, else None."""
    return next((kind for kind in ("Complete", "Failed") if condition_of(job, kind)), None)


def happened(event: Json | None) -> datetime:
    """The second in which an event was last seen, in whichever field its source told that.

    Most sources tell no more than the second: one that does would stand behind what came of it.
    """
    fields = (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",), ("metadata", "creationTimestamp"))
    told = (moment(at(event, *field)) for field in fields)
    return next((time.replace(microsecond=0) for time in told if time), datetime.min.replace(tzinfo=UTC))


def _created(pod: Json) -> str:
    return at(pod, "metadata", "creationTimestamp") or ""


def trainer_of(pod: Json | None) -> Json | None:
    """The status of the trainer's container."""
    statuses: Sequence[Json] = at(pod, "status", "containerStatuses") or ()
    return next((status for status in statuses if at(status, "name") == CONTAINER), None)


def has_ended(pod: Json) -> bool:
    """Whether the attempt in it is over, also while a sidecar runs on."""
    over = at(pod, "status", "phase") in ("Succeeded", "Failed")
    return over or bool(at(trainer_of(pod), "state", "terminated"))


def _told(pod: Json | None) -> Outcome | None:
    """The outcome in a pod's termination message; None where it is something else, such as the log's last lines."""
    try:
        return Outcome.model_validate_json(at(trainer_of(pod), "state", "terminated", "message") or "")
    except ValidationError:
        return None
