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
from job.contract.config import Compute, Quantization, Recipe
from job.contract.documents import Spec
from job.contract.errors import ConfigError, DeviceError, LocalIOError
from job.inputs import download_bytes
from job.machine import GIB, check_compiler, check_memory, read_machine, remarks

log = structlog.get_logger()

# Of Llama 3.1 8B, by the table of llama.cpp's tools/quantize/README.md. Small models need more: matrices whose rows are
# no multiple of 256 stay at 8 bits or more, and the embedding, kept at 6 or 8, is a larger share of them.
BITS_PER_WEIGHT: dict[Quantization, float] = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q6_k": 6.57,
    "q5_k_m": 5.7,
    "q4_k_m": 4.89,
}
_SLACK_BYTES = GIB  # compiled kernels, logs, the one-layer model, the report
_SLACK_SHARE = 0.05  # of the rest
_CHECKPOINTS_AT_ONCE = 3  # the two that training keeps, and one being written

_SECRETS = {"tensorboard": None, "wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_URI"}

_FIRST_WITH_BFLOAT16 = (8, 0)  # Ampere; before it torch emulates it, and Unsloth takes float16
# compute.gpu_memory_gib is nominal: error correction takes a sixteenth, the driver some, and an H200's slice "18gb" has
# 16.0. The nearest that are to be told apart are cards of 20 and 24, and of 40 and 48: 0.83.
_MEMORY_SHARE = 0.85


@dataclass(frozen=True)
class DiskNeed:
    """What a run lays down on scratch, in bytes, by what it is for. Everything stays until the run ends."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size >= 0.05 * GIB)


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


def disk_need(recipe: Recipe, weight_bytes: int, base_bytes: int, dataset_bytes: int) -> DiskNeed:
    """The scratch that a run needs.

    Args:
        recipe: decides what is made.
        weight_bytes: size of the base's safetensors, which are taken to be of 16 bits.
        base_bytes: what is downloaded of the base; 0 where it is used in place.
        dataset_bytes: what is downloaded of the dataset; rows need space where it is used in place, too.
    """
    weights = weight_bytes / 2
    # The adapter grows with the model's surface. Measured at r 16: 135M 4.9M (factor 1.16), 0.5B 8.8M (0.88),
    # 3.2B 24.3M (0.70), 8B 41.9M (0.65), 70B 207M (0.76).
    adapter = 1.2 * recipe.lora.r * weights ** (2 / 3)
    parts = {
        "base model": base_bytes,
        # As downloaded, and as rows: a token and its label take 8 bytes, and a token is some 4 bytes of text.
        "dataset": 4 * dataset_bytes,
        # Adapter and AdamW's two moments, 4 bytes each.
        "checkpoints": int(_CHECKPOINTS_AT_ONCE * 12 * adapter),
        "adapter": int(2 * 4 * adapter),
    }
    if recipe.export.gguf or recipe.export.merged:
        parts["merged model"] = weight_bytes
    if any(BITS_PER_WEIGHT[quantization] < 16 for quantization in recipe.export.gguf):
        parts["16-bit GGUF to quantize from"] = weight_bytes
    for quantization in recipe.export.gguf:
        parts[f"GGUF {quantization}"] = int(weights * BITS_PER_WEIGHT[quantization] / 8)
    parts["slack"] = int(_SLACK_BYTES + _SLACK_SHARE * sum(parts.values()))
    return DiskNeed(parts)


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
