"""What is checked before the first byte is downloaded: machine, device, disk and trackers."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from job import gpu
from job.contract.config import Compute
from job.contract.disk import GIB, DiskNeed, disk_need
from job.contract.documents import Spec
from job.contract.errors import ConfigError, DeviceError, LocalIOError
from job.inputs import download_bytes
from job.machine import check_compiler, check_memory, read_machine, remarks

log = structlog.get_logger()

_SECRETS = {"tensorboard": None, "wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_URI"}

_FIRST_WITH_BFLOAT16 = (8, 0)  # Ampere; before it torch emulates it, and Unsloth takes float16
# compute.gpu_memory_gib is nominal: error correction takes a sixteenth, the driver some, and an H200's slice "18gb" has
# 16.0. The nearest that are to be told apart are cards of 20 and 24, and of 40 and 48: 0.83.
_MEMORY_SHARE = 0.85


@dataclass(frozen=True)
class Device:
    """What a run computes on."""

    kind: str
    """`gpu` or `cpu`."""
    names: tuple[str, ...]
    """Each GPU's name, or the processor's."""
    memory_bytes: int
    """Of the smallest GPU, or of the machine."""
    has_bfloat16: bool
    """Whether every GPU computes in it; a CPU run is of float32."""
    detail: str
    """Driver and compute capability, or the number of cores."""
    remarks: tuple[str, ...] = ()
    """What is odd about it, and yet no reason not to run."""


def check_machine(compute: Compute, spec: Spec, scratch: Path, store_clock: datetime) -> None:
    """Whether a run can be done here. What is not as `compute` says, and does not stop it, is logged as a warning.

    Args:
        compute: what the config asks for.
        spec: what is to be run.
        scratch: the directory that takes it.
        store_clock: the store's present time.

    Raises:
        DeviceError: no GPU as asked for, or none that this image can use.
        ConfigError: a setting that this machine cannot honour.
        LocalIOError: scratch is too small.
    """
    device = check_device(compute.gpus)
    machine = read_machine()
    log.info("device", kind=device.kind, names=device.names, detail=device.detail)
    for remark in (*device.remarks, *remarks(machine, compute, datetime.now(UTC), store_clock)):
        log.warning("machine", remark=remark)
    check_gpu_memory(device, compute.gpu_memory_gib)
    check_dtype(device, spec.recipe.dtype)
    check_compiler(compute.gpus)
    base_bytes, dataset_bytes, weight_bytes = download_bytes(spec)
    check_memory(machine, compute.gpus, weight_bytes)
    check_disk(disk_need(spec.recipe, weight_bytes, base_bytes, dataset_bytes), scratch)


def check_disk(need: DiskNeed, scratch: Path) -> None:
    """Refuse a scratch that is too small.

    Raises:
        LocalIOError: with the need by part, and what is free.
    """
    free = shutil.disk_usage(scratch).free
    if free < need.total:
        raise LocalIOError(
            f"the run needs {need.total / GIB:.1f} GiB on {scratch} and {free / GIB:.1f} GiB are free (in GiB: {need})",
            "Raise compute.scratch_gib, or ask for fewer files in export.gguf.",
        )


def check_device(gpus: int) -> Device:
    """The device that `compute.gpus` asks for: so many GPUs, or with 0 the CPU.

    Raises:
        DeviceError: no driver, one that is too old, fewer GPUs than asked for, or one that there are no kernels for.
        ConfigError: several GPUs that do not work together.
    """
    if gpus == 0:
        return _cpu()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    driver, found = gpu.see(visible)
    gpu.check_gpus(driver, found, gpus, visible)
    used = found[:gpus]
    return Device(
        kind="gpu",
        names=tuple(each.name for each in used),
        memory_bytes=min(each.memory_bytes for each in used),
        has_bfloat16=min(each.capability for each in used) >= _FIRST_WITH_BFLOAT16,
        detail=gpu.describe(driver, used),
        remarks=gpu.memory_errors(used),
    )


def _cpu() -> Device:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    machine = read_machine()
    return Device(
        kind="cpu",
        names=(model[0].partition(": ")[2] if model else platform.machine(),),
        memory_bytes=machine.memory_bytes,
        has_bfloat16=False,
        detail=f"{machine.cpus} cores",
    )


def check_gpu_memory(device: Device, gpu_memory_gib: float) -> None:
    """Compare a GPU with `compute.gpu_memory_gib`, which is nominal.

    Raises:
        DeviceError: it has clearly less.
    """
    if device.kind == "gpu" and device.memory_bytes < _MEMORY_SHARE * gpu_memory_gib * GIB:
        raise DeviceError(
            f"the GPU has {device.memory_bytes / GIB:.1f} GiB, and compute.gpu_memory_gib asks for {gpu_memory_gib:g}",
            "Send the run to a larger GPU, or lower compute.gpu_memory_gib.",
        )


def check_dtype(device: Device, dtype: str) -> None:
    """Refuse bfloat16 on a GPU that computes no such thing.

    Raises:
        ConfigError: naming `dtype`.
    """
    if device.kind == "gpu" and dtype == "bfloat16" and not device.has_bfloat16:
        raise ConfigError(
            f"dtype is bfloat16, and {device.names[0]} has none ({device.detail}; it begins with 8.0)",
            "Set dtype to auto or float16, or send the run to a newer GPU.",
        )


def check_trackers(report_to: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse trackers that cannot work here.

    Raises:
        ConfigError: naming each one whose package or secret is missing.
    """
    problems = []
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            problems.append(f"{name} is not installed")
        elif (secret := _SECRETS[name]) and not environment.get(secret):
            problems.append(f"{name} needs {secret}")
    if problems:
        raise ConfigError(
            f"training.report_to: {', '.join(problems)}",
            "Take it out, or install this package's extra of that name and set its variable in the environment.",
        )
