"""Why a run does not go on: from its Job, pods, events and documents to one cause and what to do about it. Pure."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Self

from job.contract.exits import Exit
from job.contract.model import Document
from launcher.evidence import Evidence, Json, at, has_ended, moment, trainer_of
from launcher.runs import RunDocuments

Speaker = Literal["API server", "controller manager", "scheduler", "kubelet", "Kueue", "job", "launcher"]


class Category(StrEnum):
    """What is wrong, in one word that never changes: others compare it. `summary` says the same in a sentence."""

    summary: str

    def __new__(cls, value: str, summary: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.summary = summary
        return member

    # No pod is made
    QUOTA_EXCEEDED = "QuotaExceeded", "the namespace's quota has no room for its pod"
    POD_SECURITY_DENIED = "PodSecurityDenied", "the namespace's PodSecurity refuses its pod"
    ACCOUNT_MISSING = "AccountMissing", "there is no service account {account}"
    PRIORITY_CLASS_MISSING = "PriorityClassMissing", "there is no PriorityClass {priority}"
    POLICY_DENIED = "PolicyDenied", "an admission policy refuses it"
    NOT_CREATED = "NotCreated", "the API server makes no pod of it"
    QUEUE_MISSING = "QueueMissing", "there is no LocalQueue {queue} in its namespace"
    QUEUED = "Queued", "it waits for quota in the queue {queue}"
    SUSPENDED = "Suspended", "its Job is suspended, and nothing is known that would start it"
    # No node takes the pod
    NO_GPU = "NoGpu", "no node has as many GPUs free as it asks for"
    INSUFFICIENT_RESOURCES = "InsufficientResources", "no node has as much CPU, memory or disk free as it asks for"
    TAINTED = "Tainted", "the nodes that are left have a taint that it does not tolerate"
    CORDONED = "Cordoned", "the nodes that are left are cordoned"
    NO_NODE_MATCHES = "NoNodeMatches", "no node has the labels that it asks for"
    VOLUME_UNBOUND = "VolumeUnbound", "a volume of its pod is not there"
    UNSCHEDULABLE = "Unschedulable", "no node takes its pod"
    # The container does not start
    IMAGE_PULL = "ImagePull", "its image cannot be pulled"
    CONTAINER_CANNOT_START = "ContainerCannotStart", "its container cannot be started"
    KUBELET_REFUSED = "KubeletRefused", "the node {node} was chosen for its pod, and its kubelet refused it"
    BROKEN_IMAGE = "BrokenImage", "its container ended with {code}: the image or its command is broken"
    # It was ended
    OUT_OF_MEMORY = "OutOfMemory", "its container used more memory than it may, and was killed"
    CHILD_OUT_OF_MEMORY = "ChildOutOfMemory", "a process of the job was killed, most likely for memory"
    EVICTED = "Evicted", "the node {node} ran short of something, and evicted its pod"
    PREEMPTED = "Preempted", "its pod had to make room for one of a higher priority"
    DISRUPTED = "Disrupted", "its pod was taken from the node {node}"
    DEADLINE_EXCEEDED = "DeadlineExceeded", "it did not end before its deadline"
    NODE_LOST = "NodeLost", "the node {node} is lost, and no other pod starts before it is back or given up"
    SILENT = "Silent", "its pod {pod} runs, and has given no sign of life for {silence}"
    KILLED = "Killed", "its container was killed: it ended with {code}"
    # The exit codes of the job, each by its name in `Exit`
    USAGE = "Usage", "the job was started with flags or variables that it does not take"
    DATA = "Data", "its dataset, base model or chat template cannot be used"
    NO_INPUT = "NoInput", "an input is missing, empty or archived"
    S3_UNAVAILABLE = "S3Unavailable", "the store did not answer for a long time"
    BUG = "Bug", "the job met what must not happen"
    DEVICE = "Device", "the GPU of the node {node} is missing, hangs, or cannot be used"
    TAKEN = "Taken", "the run belongs to another spec, or a live attempt elsewhere runs it"
    IO = "Io", "the scratch disk is full or fails"
    INTERRUPTED = "Interrupted", "it was told to stop, and had saved what there was to save"
    FENCED = "Fenced", "a newer attempt took over"
    NO_PERMISSION = "NoPermission", "the store refuses the job"
    CONFIG = "Config", "the config, or what it asks of this machine or store, is not possible"
    GPU_OOM = "GpuOutOfMemory", "the GPU's memory does not hold this config"
    # It ended, and little is known
    COMPLETE_WITHOUT_RESULT = "CompleteWithoutResult", "its container ended with 0, and yet left no result"
    JOB_FAILED = "JobFailed", "its Job failed, and no pod of it is left to say why"
    DELETED = "Deleted", "its Job was deleted before there was a result"
    NIGHT_SKIPPED = "NightSkipped", "a night was skipped"


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
    now: datetime,
    queue_exists: bool = True,
) -> Diagnosis | None:
    """Why a run does not go on; None when nothing is wrong, it is over and well, or somebody cancelled it.

    Args:
        job: as the API server tells it in JSON; None when it has none of that name.
        pods: those of this Job; None when they are not known.
        events: of the Job, of its pods, also of those that have gone, of its Kueue Workload, and of its CronJob.
        documents: what the store holds.
        now: the present time.
        queue_exists: whether the LocalQueue that it names is there; Kueue says so in no event.
    """
    run = Evidence(job or {}, pods, documents, now)
    cause = _cause(run, sorted(events, key=_when), queue_exists)
    if not cause:
        return None
    facts = _facts(run)
    return Diagnosis(
        category=cause.category,
        summary=cause.category.summary.format(**facts),
        said=cause.said,
        by=cause.by if cause.said else "launcher",
        resolution=cause.resolution or _RESOLUTIONS[cause.category].format(**facts),
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
        return None if run.beats else _ending(run) or _by_event(_newest_step(events)) or _gone(run)
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
    """A deadline is the cause only of what ran: what never did was held up by something."""
    told = run.job_message
    if run.job_reason == "DeadlineExceeded":
        held = None if _has_run(run) else _waiting(run.newest_pod, events) or _by_event(_newest_step(events))
        return held or _Cause(Category.DEADLINE_EXCEEDED, told, "controller manager")
    if found := _ending(run):
        return found
    code = re.search(r"failed with exit code (\d+)", told)
    return _Cause(_category(int(code[1])) if code else Category.JOB_FAILED, told, "controller manager")


def _gone(run: Evidence) -> _Cause | None:
    return _Cause(Category.DELETED) if run.documents.spec or run.attempt else None


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

_STEPS = ("FailedCreate", "SuccessfulCreate", "JobAlreadyActive", "MissSchedule", "TooManyMissedTimes")
# First part of the message that is found, in this order: PodSecurity's and a quota's words are "forbidden", too.
_REFUSALS = (
    (r"exceeded quota|failed quota", Category.QUOTA_EXCEEDED),
    (r"violates PodSecurity", Category.POD_SECURITY_DENIED),
    (r"error looking up service account", Category.ACCOUNT_MISSING),
    (r"no PriorityClass with name", Category.PRIORITY_CLASS_MISSING),
    (r"denied|is forbidden", Category.POLICY_DENIED),
    (r"", Category.NOT_CREATED),
)
# By what a person can do about it. A GPU comes first: nodes without one are full of other reasons.
_UNSCHEDULABLE = (
    (r"Insufficient [\w.-]+/", Category.NO_GPU),
    (r"Insufficient |Too many pods", Category.INSUFFICIENT_RESOURCES),
    (r"untolerated taint", Category.TAINTED),
    (r"were unschedulable", Category.CORDONED),
    (r"didn't match Pod's node affinity", Category.NO_NODE_MATCHES),
    (r"(?i)volume|free storage", Category.VOLUME_UNBOUND),
    (r"", Category.UNSCHEDULABLE),
)
# What only repeats a container's state, or an end that was asked for.
_NOISE = re.compile(r"Error: \w+$|skip schedule deleting pod")


def _newest_step(events: Sequence[Json]) -> Json | None:
    """What was done last to make a pod, or with one: other words of a controller are no step."""
    steps = (e for e in events if at(e, "involvedObject", "kind") == "Pod" or at(e, "reason") in _STEPS)
    return _last([event for event in steps if not _NOISE.match(_message(event))])


def _by_event(event: Json | None) -> _Cause | None:
    """What an event says is wrong, None for one of progress."""
    said, reason = _message(event), at(event, "reason")
    if reason == "FailedCreate":
        return _Cause(_first(_REFUSALS, said), said, "API server")
    if reason == "FailedScheduling":
        return _Cause(_first(_UNSCHEDULABLE, said), said, "scheduler")
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
    if at(step, "reason") != "FailedCreate" or (run.newest_pod and (made is None or _when(step) <= made)):
        return None
    return _by_event(step)


# A pod that waits

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})


def _waiting(pod: Json | None, events: Sequence[Json]) -> _Cause | None:
    """Why a pod does not run: what its containers wait for, then the scheduler's words, then its newest event."""
    if pod is None or has_ended(pod):
        return None
    statuses = [*(at(pod, "status", "initContainerStatuses") or ()), *(at(pod, "status", "containerStatuses") or ())]
    for waiting in (at(status, "state", "waiting") for status in statuses):
        reason = at(waiting, "reason")
        if reason and reason not in _STARTING:
            of_image = reason in _IMAGE_REASONS
            category = Category.IMAGE_PULL if of_image else Category.CONTAINER_CANNOT_START
            return _Cause(category, at(waiting, "message") or reason, "kubelet")
    scheduled = _condition(pod, "PodScheduled")
    if at(scheduled, "status") == "False" and (said := at(scheduled, "message")):
        return _Cause(_first(_UNSCHEDULABLE, said), said, "scheduler")
    name = at(pod, "metadata", "name")
    return _by_event(_newest_step([e for e in events if name and at(e, "involvedObject", "name") == name]))


# A pod that ended

_DISRUPTORS: Mapping[str, Speaker] = {"TerminationByKubelet": "kubelet", "EvictionByEvictionAPI": "API server"}


def _disruption(pod: Json | None) -> _Cause | None:
    """Who took the pod away, also while it still ends."""
    condition = _condition(pod, "DisruptionTarget")
    if at(pod, "status", "reason") == "Evicted":
        return _Cause(Category.EVICTED, at(pod, "status", "message") or "Evicted", "kubelet")
    if at(condition, "status") != "True":
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
    # The supervisor lives to tell of a child that was killed. Exit 0 proves nothing.
    if code == 137 and outcome and outcome.code == 137:
        return _Cause(Category.CHILD_OUT_OF_MEMORY, *told)
    if reason == "OOMKilled":
        return _Cause(Category.OUT_OF_MEMORY if code == 137 else Category.CHILD_OUT_OF_MEMORY, reason, "kubelet")
    return _Cause(_category(code), told[0], told[1], outcome.resolution if outcome else "")


def _category(code: int) -> Category:
    """What an exit code means."""
    if code == 0:
        return Category.COMPLETE_WITHOUT_RESULT
    if code in set(Exit):
        return Category[Exit(code).name]
    if code == 128:  # the runtime's start error
        return Category.CONTAINER_CANNOT_START
    return Category.KILLED if code > 128 else Category.BROKEN_IMAGE


# What to do

# `again` replaces the Job, which an immutable part of it or of its config asks for; `go_on` needs no change of it.
_RESOLUTIONS: Mapping[Category, str] = {
    Category.QUOTA_EXCEEDED: "It starts when others have ended. Or ask for less in `compute`, then {again}. `kubectl describe resourcequota` shows what is used.",
    Category.POD_SECURITY_DENIED: "Mend in k8s/job.yaml what the words name (the shipped one passes `restricted`), then {again}.",
    Category.ACCOUNT_MISSING: "`kubectl create serviceaccount {account}`, or name another one as serviceAccountName in k8s/job.yaml, then {again}.",
    Category.PRIORITY_CLASS_MISSING: "Set compute.priority to one of `kubectl get priorityclasses`, then {again}.",
    Category.POLICY_DENIED: "Mend in k8s/job.yaml or in `compute` what the words name, or ask whoever runs the cluster, then {again}.",
    Category.NOT_CREATED: "`kubectl describe job {job}` lists each try. Ask whoever runs the cluster.",
    Category.QUEUE_MISSING: "Set compute.queue to one of `kubectl get localqueues`, then {again}.",
    Category.QUEUED: "It starts by itself when others have ended. `kubectl get workloads` shows what is before it; compute.queue names another queue.",
    Category.SUSPENDED: '`kubectl patch job {job} --type=merge -p \'{{"spec": {{"suspend": false}}}}\'` starts it.',
    Category.NO_GPU: "It starts when others have ended. Or lower compute.gpus, then {again}. `kubectl describe nodes` shows the GPUs of each node and who has them; a node that shows none lacks the device plugin.",
    Category.INSUFFICIENT_RESOURCES: "Lower compute.cpus, compute.memory_gib or compute.scratch_gib, then {again}, or wait. `kubectl describe nodes` shows what is free.",
    Category.TAINTED: "Add the taint to the tolerations in k8s/job.yaml, then {again}, or remove it with `kubectl taint nodes NODE KEY-`. `kubectl describe nodes` shows the taints.",
    Category.CORDONED: "`kubectl uncordon NODE` when its maintenance is over; `kubectl get nodes` shows which one it is.",
    Category.NO_NODE_MATCHES: "Mend nodeSelector or affinity in k8s/job.yaml, then {again}, or label a node. `kubectl get nodes --show-labels` shows what there is.",
    Category.VOLUME_UNBOUND: "`kubectl describe pvc` says what it waits for; its name and storageClassName stand in k8s/job.yaml.",
    Category.UNSCHEDULABLE: "`kubectl describe pod {pod}` and `kubectl get nodes` show more. Ask whoever runs the cluster.",
    Category.IMAGE_PULL: "Mend image or imagePullSecrets in k8s/job.yaml, then {again}.",
    Category.CONTAINER_CANNOT_START: "Create what the words name, such as a Secret or a ConfigMap, or mend k8s/job.yaml, then {again}. `kubectl describe pod {pod}` shows each try.",
    Category.KUBELET_REFUSED: "Look at the node's device plugin and its room, or keep pods off it with `kubectl cordon {node}`; then {go_on}.",
    Category.BROKEN_IMAGE: "Set image in k8s/job.yaml to one of this version, by digest, and leave its command alone; then {again}. `kubectl logs {pod}` shows more.",
    Category.OUT_OF_MEMORY: "Raise compute.memory_gib, then {again}: it goes on from the newest checkpoint.",
    Category.CHILD_OUT_OF_MEMORY: "Raise compute.memory_gib, then {again}: it goes on from the newest checkpoint.",
    Category.EVICTED: "Raise compute.scratch_gib if the words name ephemeral-storage or a volume, compute.memory_gib if they name memory, then {again}. Else {go_on}.",
    Category.PREEMPTED: "Set compute.priority to a higher PriorityClass, then {again}. Else {go_on}.",
    Category.DISRUPTED: "Nothing is to be mended: {go_on}. `kubectl describe node {node}` shows whether it is drained.",
    Category.DEADLINE_EXCEEDED: "Raise compute.max_hours, then {again}: it goes on from the newest checkpoint.",
    Category.NODE_LOST: "Once it is surely off: `kubectl taint nodes {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute`.",
    Category.SILENT: "`kubectl logs {pod}` shows what it does; `kubectl delete pod {pod}` ends it, and another attempt goes on from the newest checkpoint.",
    Category.KILLED: "Raise compute.memory_gib if it was memory. `kubectl describe pod {pod}` and `kubectl get events` show who ended it. Then {go_on}.",
    Category.USAGE: "Compare args and env of k8s/job.yaml with those of the template that ships with this version, then {again}.",
    Category.DATA: "Mend what the words name; `finetune validate CONFIG` checks it without a GPU. Then `launch`, which makes another run of it.",
    Category.NO_INPUT: "Upload or restore what the words name, or mend base_model or dataset.train; then {go_on}.",
    Category.S3_UNAVAILABLE: "Look at the store, and at the network between it and the pod; then {go_on}.",
    Category.BUG: "`kubectl logs {pod}` and the attempt's log in the store have the traceback. Report it with them.",
    Category.DEVICE: "`kubectl cordon {node}`, and look at its driver and device plugin; then {go_on}.",
    Category.TAKEN: "`finetune status {job}` shows who runs it; `launch --again` makes another run.",
    Category.IO: "Raise compute.scratch_gib, then {again}: it goes on from the newest checkpoint.",
    Category.INTERRUPTED: "Nothing is to be mended: {go_on}.",
    Category.FENCED: "Nothing is to be mended. `finetune status {job}` shows the attempt that runs.",
    Category.NO_PERMISSION: "Give the identity of the service account {account} the rights on the store that the words name; then {go_on}.",
    Category.CONFIG: "Mend the key that the words name, then `launch`.",
    Category.GPU_OOM: "Lower training.per_device_train_batch_size or max_seq_length, then `launch`, which makes another run of it.",
    Category.COMPLETE_WITHOUT_RESULT: "`kubectl logs {pod}` shows how it ended; then {go_on}.",
    Category.JOB_FAILED: "The newest attempt's log is in the store: `finetune logs {job}`. Then {go_on}.",
    Category.DELETED: "Nothing is to be mended: {go_on}.",
    Category.NIGHT_SKIPPED: "`finetune list` shows the night that still runs, `finetune cancel` ends it; the next one starts at its time.",
}


def _facts(run: Evidence) -> dict[str, Any]:
    """What the texts name; a placeholder where it is not known."""
    pod = run.ended_pod or run.newest_pod
    template = at(run.job, "spec", "template", "spec")
    ended = any(map(run.has, ("Failed", "FailureTarget", "Complete", "SuccessCriteriaMet")))
    again = "`launch --resume`" if ended else "`cancel` and `launch`" if run.job else "`launch`"
    next_one = f"`launch{' --resume' if ended else ''}`" if ended or not run.job or run.deleted else "another attempt"
    return {
        "job": run.documents.run_id,
        "pod": at(pod, "metadata", "name") or "POD",
        "node": run.lost_node or at(pod, "spec", "nodeName") or "NODE",
        "account": at(template, "serviceAccountName") or "default",
        "priority": at(template, "priorityClassName") or "of that name",
        "queue": run.queue,
        "silence": run.silence,
        "code": run.exit_code,
        "again": again,
        "go_on": f"{next_one} goes on from the newest checkpoint",
    }


# Plain JSON of Kubernetes


def _condition(pod: Json | None, kind: str) -> Json | None:
    conditions: Sequence[Json] = at(pod, "status", "conditions") or ()
    return next((one for one in conditions if at(one, "type") == kind), None)


def _message(event: Json | None) -> str:
    return at(event, "message") or ""


def _last(events: Sequence[Json]) -> Json | None:
    return events[-1] if events else None


def _first(table: Sequence[tuple[str, Category]], said: str) -> Category:
    """The first row whose pattern is found."""
    return next(category for pattern, category in table if re.search(pattern, said))


def _when(event: Json | None) -> datetime:
    """When it was last seen, in whichever field its source told that."""
    fields = (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",), ("metadata", "creationTimestamp"))
    told = (moment(at(event, *field)) for field in fields)
    return next((time for time in told if time), datetime.min.replace(tzinfo=UTC))
