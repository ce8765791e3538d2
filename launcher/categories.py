"""What can be wrong with a run, in words that never change: how it is told, and what to do about it. Pure."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Self

from job.contract.exits import Exit
from launcher.evidence import Evidence, at, one_more_night


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


# How it is told

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

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)


def of_refusal(said: str) -> Category:
    """Why the API server makes no pod, by its words."""
    return _first(_REFUSALS, said)


def of_scheduling(said: str) -> Category:
    """Why no node takes a pod, by the scheduler's words."""
    return _first(_UNSCHEDULABLE, said)


def of_waiting(reason: str) -> Category:
    """Why a container does not start, by the kubelet's word for it."""
    return Category.IMAGE_PULL if reason in _IMAGE_REASONS else Category.CONTAINER_CANNOT_START


def of_exit(code: int) -> Category:
    """What an exit code means."""
    if code == 0:
        return Category.COMPLETE_WITHOUT_RESULT
    if code in set(Exit):
        return Category[Exit(code).name]
    if code == 128:  # the runtime's start error
        return Category.CONTAINER_CANNOT_START
    return Category.KILLED if code > 128 else Category.BROKEN_IMAGE


def _first(table: Sequence[tuple[str, Category]], said: str) -> Category:
    """The first row whose pattern is found."""
    return next(category for pattern, category in table if re.search(pattern, said))


# What to do

# `again` replaces the Job, which an immutable part of it or of its config asks for; `go_on` needs no change of it.
RESOLUTIONS: Mapping[Category, str] = {
    Category.QUOTA_EXCEEDED: "Ask for less in `compute`, then {again}{or_wait}. `kubectl describe resourcequota` shows what is used.",
    Category.POD_SECURITY_DENIED: "Mend in k8s/job.yaml what the words name (the shipped one passes `restricted`), then {again}.",
    Category.ACCOUNT_MISSING: "`kubectl create serviceaccount {account}`, or name another one as serviceAccountName in k8s/job.yaml, then {again}.",
    Category.PRIORITY_CLASS_MISSING: "Set compute.priority to one of `kubectl get priorityclasses`, then {again}.",
    Category.POLICY_DENIED: "Mend in k8s/job.yaml or in `compute` what the words name, or ask whoever runs the cluster, then {again}.",
    Category.NOT_CREATED: "`kubectl describe job {job}` lists each try. Ask whoever runs the cluster.",
    Category.QUEUE_MISSING: "Set compute.queue to one of `kubectl get localqueues`, then {again}.",
    Category.QUEUED: "It starts by itself when others have ended. `kubectl get workloads` shows what is before it; compute.queue names another queue.",
    Category.SUSPENDED: '`kubectl patch job {job} --type=merge -p \'{{"spec": {{"suspend": false}}}}\'` starts it.',
    Category.NO_GPU: "Lower compute.gpus, then {again}{or_wait}. `kubectl describe nodes` shows the GPUs of each node and who has them: where no node has so many, waiting does not help, and a node that shows none lacks the device plugin.",
    Category.INSUFFICIENT_RESOURCES: "Lower compute.cpus, compute.memory_gib or compute.scratch_gib, then {again}{or_wait}. `kubectl describe nodes` shows what is free.",
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
    Category.DEADLINE_EXCEEDED: "Raise compute.max_hours; then {go_on}.",
    # kubernetes.io/docs/concepts/cluster-administration/node-shutdown, "Non-graceful node shutdown"
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
    Category.IO: "Raise compute.scratch_gib; then {go_on}.",
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


def facts(run: Evidence) -> dict[str, Any]:
    """What the texts name; a placeholder where it is not known."""
    pod = run.ended_pod or run.newest_pod
    template = at(run.job, "spec", "template", "spec")
    ended = any(map(run.has, ("Failed", "FailureTarget", "Complete", "SuccessCriteriaMet")))
    launch = f"`{one_more_night(run.schedule)}`" if run.schedule else "`launch`"
    again = run.anew if ended else f"`cancel` and {launch}" if run.job else "`launch`"
    next_one = "`launch`" if not run.job or run.deleted else "another attempt"
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
        "or_wait": f", or {again} as it is once others have ended" if ended else ", or wait until others have ended",
        "go_on": run.going_on if ended else f"{next_one} goes on from the newest checkpoint",
    }
