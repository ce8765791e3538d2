"""Which of a cluster's GPUs a pod of the Job template can have: by its nodes, and by the namespace's quotas. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from job.contract.errors import ConfigError, JobError
from launcher.kube import Json
from launcher.manifest import Manifest, gpu_resource, trainer

_NAMED_AT_MOST = 8


class Note(JobError):
    """What is to be told, and yet is no failure."""


def gpu_nodes(template: Manifest, nodes: Sequence[Json]) -> str:
    """What of the cluster's GPUs a pod of the template can have. Affinity, and what runs there now, are left out.

    Raises:
        JobError: it can have none; a mere note when no node has GPUs at all.
    """
    resource, wanted = _gpus(template)
    having = [node for node in nodes if resource in node.get("status", {}).get("allocatable", {})]
    if not having:
        raise Note(f"no node has {resource} now", "Install its device plugin, unless an autoscaler adds such nodes.")
    against = {node["metadata"]["name"]: obstacles(node, template) for node in having}
    closed = [f"{name} ({', '.join(why)})" for name, why in against.items() if why]
    counts = [int(node["status"]["allocatable"][resource]) for node in having if not against[node["metadata"]["name"]]]
    left_out = f"; left out: {few(closed)}" if closed else ""
    if not counts or max(counts) < wanted:
        raise ConfigError(
            f"no node can take a pod with {wanted} {resource}: at most {max(counts, default=0)} on one{left_out}",
            "Ask for fewer, or let the Job template tolerate and select such nodes.",
        )
    return f"{sum(counts)} {resource} on {len(counts)} nodes, at most {max(counts)} on one{left_out}"


def obstacles(node: Json, template: Manifest) -> list[str]:
    """Why a node takes no pod of the template, whatever its size: cordon, taints, labels."""
    pod, spec, labels = pod_of(template), node.get("spec", {}), node["metadata"].get("labels", {})
    tolerations = pod.get("tolerations", ())
    repelling = [
        taint
        for taint in spec.get("taints", ())
        if taint["effect"] != "PreferNoSchedule" and not any(tolerates(each, taint) for each in tolerations)
    ]
    return [
        *(["cordoned"] if spec.get("unschedulable") else []),
        *(f"taint {taint['key']}={taint.get('value', '')}:{taint['effect']}" for taint in repelling),
        *(f"not {key}={value}" for key, value in pod.get("nodeSelector", {}).items() if labels.get(key) != value),
    ]


def tolerates(toleration: Mapping[str, str], taint: Mapping[str, str]) -> bool:
    """Whether a toleration matches a taint, as the scheduler does it."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    operator = toleration.get("operator") or "Equal"
    return operator == "Exists" or (operator == "Equal" and toleration.get("value", "") == taint.get("value", ""))


def quota(template: Manifest, quotas: Iterable[Json]) -> str:
    """How many GPUs the namespace's quotas allow, and how many are used.

    Raises:
        ConfigError: one allows fewer than a pod of the template asks for.
    """
    resource, wanted = _gpus(template)
    key = f"requests.{resource}"
    told = []
    for name, hard, used in (
        (each["metadata"]["name"], each["spec"].get("hard", {}), each.get("status", {}).get("used", {}))
        for each in quotas
    ):
        if int(hard.get(key, wanted)) < wanted:
            raise ConfigError(
                f"the quota {name} allows {hard[key]} {resource}, and the Job template asks for {wanted}",
                "Ask whoever runs the cluster for more.",
            )
        if key in hard:
            told.append(f"{used.get(key, 0)} of {hard[key]} {resource} are used of the quota {name}")
    return "; ".join(told) or f"no quota limits {resource}"


def _gpus(template: Manifest) -> tuple[str, int]:
    """The template's GPU resource, and how many of it."""
    name = gpu_resource(trainer(template))
    if name is None:
        raise Note("the Job template asks for no GPU")
    return name, int(trainer(template)["resources"]["limits"][name])


def pod_of(template: Manifest) -> Json:
    """The spec of the pods of a Job template."""
    pod: Json = template["spec"]["template"]["spec"]
    return pod


def few(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
