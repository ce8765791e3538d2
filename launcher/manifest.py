"""The Job of a run: the site's template, filled in. Pure."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from job.contract.config import Compute, RunConfig
from job.contract.errors import ConfigError
from job.contract.keys import RunKeys, config_key

Manifest = dict[str, Any]

PREFIX = "finetune.local/"
"""Of our annotations."""
SPEC_SHA256, RUN_URI, SUBMITTER = f"{PREFIX}spec-sha256", f"{PREFIX}run-uri", f"{PREFIX}submitter"
ENDED_BECAUSE = f"{PREFIX}ended-because"
"""Why the launcher ended a Job, in words."""
MADE_BY = "app.kubernetes.io/managed-by=finetune-launcher"
"""The label that every pod gets, whatever the site's template says."""
SELECTOR = f"app.kubernetes.io/name=finetune,{MADE_BY}"
"""Labels of every Job that the launcher made."""
MODEL = f"{PREFIX}model"
"""The label of a Job that names its model line."""
CONTAINER = "trainer"
PLACEHOLDER = "s3://your-bucket/finetune"
"""The root of runs in the template that ships."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Kueue's label."""


@dataclass(frozen=True)
class Submission:
    """What a config, its site and whoever submits it have to say in a Job."""

    model: str
    """The model line."""
    runs: str
    """The root of runs, for the pods as for the launcher, whatever the template says."""
    config_uri: str
    """Where the pods find the config."""
    compute: Compute
    submitter: str
    version: str
    """Of the launcher."""


def submission_of(config: RunConfig, config_bytes: bytes, runs: str, submitter: str) -> Submission:
    """Of a config, its file's bytes, a root of runs, and whoever submits it, for the record."""
    return Submission(
        model=config.name,
        runs=runs,
        config_uri=f"{runs}/{config_key(config_bytes)}",
        compute=config.compute,
        submitter=submitter,
        version=version("finetune"),
    )


def build_job(template: Manifest, submission: Submission, run_id: str, spec_sha256: str) -> Manifest:
    """The Job of a run, as it is sent; the template is left as it is.

    Raises:
        ConfigError: the config asks for more than the template's ceilings, or the template lacks a part.
    """
    job = fill(template, submission, run_id)
    run_uri = f"{submission.runs}/{RunKeys(run_id).prefix}"
    job["metadata"]["annotations"] |= {SPEC_SHA256: spec_sha256, RUN_URI: run_uri}
    return job


def fill(template: Manifest, submission: Submission, name: str) -> Manifest:
    """A Job of the template with all that follows from a config; the template is left as it is.

    Args:
        template: the site's.
        submission: what is filled in.
        name: the Job's, and the instance that its labels name.

    Raises:
        ConfigError: the config asks for more than the template's ceilings, or the template lacks a part.
    """
    compute = submission.compute
    check_ceilings(template, compute)
    job = copy.deepcopy(template)
    container = trainer(job)
    metadata, spec = job["metadata"], job["spec"]
    metadata["name"] = name
    labels = {
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/version": submission.version,
        "app.kubernetes.io/managed-by": "finetune-launcher",
        MODEL: submission.model,
    }
    metadata["labels"] = metadata.get("labels", {}) | labels
    metadata["annotations"] = metadata.get("annotations", {}) | {SUBMITTER: submission.submitter}
    pod = spec["template"].setdefault("metadata", {})
    pod["labels"] = pod.get("labels", {}) | labels
    spec["activeDeadlineSeconds"] = int(compute.max_hours * 3600)
    if compute.priority:
        spec["template"]["spec"]["priorityClassName"] = compute.priority
    if compute.queue:
        metadata["labels"][QUEUE] = compute.queue
        spec["suspend"] = True  # Kueue starts it, also when its webhook is down
    set_env(container, "FINETUNE_RUNS", submission.runs)
    set_env(container, "FINETUNE_CONFIG", submission.config_uri)
    set_env(container, "FINETUNE_IMAGE", container["image"])  # a spec that a pod freezes names it as a launch's does
    before_telling = grace_seconds(job) * 5 // 6  # the rest is for telling how it ended
    set_env(container, "FINETUNE_GRACE_SECONDS", str(before_telling))
    resources = sizes(container, compute)
    container["resources"] = {"requests": resources, "limits": dict(resources)}
    size_scratch(spec["template"]["spec"], compute.scratch_gib)
    return job


def is_ours(manifest: Mapping[str, Any]) -> bool:
    """Whether the launcher made a Job or CronJob: by its labels, those of `SELECTOR`."""
    labels = manifest["metadata"].get("labels", {})
    return all(labels.get(name) == value for name, _, value in (pair.partition("=") for pair in SELECTOR.split(",")))


def check_ceilings(template: Manifest, compute: Compute) -> None:
    """Raises `ConfigError` for everything that the site does not allow a run."""
    annotations: Mapping[str, str] = template["metadata"].get("annotations", {})
    problems = []
    for key, asked in (("max-gpus", compute.gpus), ("max-hours", compute.max_hours)):
        ceiling = annotations.get(PREFIX + key)
        if ceiling is not None and asked > float(ceiling):
            problems.append(f"compute.{'gpus' if key == 'max-gpus' else 'max_hours'} is {asked:g}, at most {ceiling}")
    allowed = [name.strip() for name in annotations.get(f"{PREFIX}max-priority", "").split(",") if name.strip()]
    if compute.priority and compute.priority not in allowed:
        problems.append(f"compute.priority is {compute.priority}, and this site allows {', '.join(allowed) or 'none'}")
    if problems:
        raise ConfigError(f"the config asks for more than this site allows: {'; '.join(problems)}", "Ask for less.")


def trainer(job: Manifest) -> Manifest:
    """The container that trains.

    Raises:
        ConfigError: when the template has none.
    """
    for container in job["spec"]["template"]["spec"]["containers"]:
        if container["name"] == CONTAINER:
            found: Manifest = container
            return found
    raise ConfigError(
        f"the Job template has no container named {CONTAINER}", "Start from the k8s/job.yaml of this version."
    )


def grace_seconds(job: Manifest) -> int:
    """How long a Job's pod has to end itself."""
    seconds: int = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    return seconds


def image_of(template: Manifest) -> str:
    """The image that a run's spec names."""
    image: str = trainer(template)["image"]
    return image


def env_of(template: Manifest, name: str) -> str | None:
    """The plain value of a variable of the trainer's."""
    found = (entry.get("value") for entry in trainer(template).get("env", ()) if entry["name"] == name)
    return next(found, None)


def set_env(container: Manifest, name: str, value: str) -> None:
    """Gives a variable its value, in its place."""
    entries = container.setdefault("env", [])
    for entry in entries:
        if entry["name"] == name:
            entry.pop("valueFrom", None)
            entry["value"] = value
            return
    entries.append({"name": name, "value": value})


def sizes(container: Manifest, compute: Compute) -> Manifest:
    """Requests and limits, which are the same: such pods are evicted last."""
    before = container.get("resources", {}).get("limits", {})
    device = gpu_resource(container) or "nvidia.com/gpu"
    own = {name: value for name, value in before.items() if name != device}
    resources = own | {"cpu": f"{compute.cpus:g}", "memory": gibibytes(compute.memory_gib)}
    return resources | ({device: compute.gpus} if compute.gpus else {})


def gpu_resource(container: Manifest) -> str | None:
    """The name of a container's GPUs, such as nvidia.com/gpu or nvidia.com/mig-3g.40gb; other devices are left alone."""
    limits = container.get("resources", {}).get("limits", {})
    return next(
        (name for name in limits if re.search(r"/(gpu|mig-|.*\.gpu)", name) or name.startswith("nvidia.com/")), None
    )


def size_scratch(pod: Manifest, gib: float) -> None:
    """Gives the scratch volume its size, whatever kind it is.

    Raises:
        ConfigError: when the template has no such volume.
    """
    for volume in pod.get("volumes", ()):
        if volume["name"] == "scratch":
            if "ephemeral" in volume:
                claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
                claim.setdefault("resources", {})["requests"] = {"storage": gibibytes(gib)}
            elif "emptyDir" in volume:
                volume["emptyDir"] = {**(volume["emptyDir"] or {}), "sizeLimit": gibibytes(gib)}
            return
    raise ConfigError("the Job template has no volume named scratch", "Start from the k8s/job.yaml of this version.")


def gibibytes(size: float) -> str:
    """As Kubernetes writes it, in whole MiB where it must be."""
    return f"{size:g}Gi" if float(size).is_integer() else f"{round(size * 1024)}Mi"
