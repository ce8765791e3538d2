"""What the machine must have, checked before the first byte is downloaded: disk, device, trackers."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from job.contract.config import Quantization, Recipe
from job.contract.errors import ConfigError, DeviceError, LocalIOError

GIB = 1024**3

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

# What the pinned torch (2.6.0, CUDA 12.4) has kernels for: Volta to Hopper. Blackwell is 10.0 and above.
_LOWEST_CAPABILITY, _FIRST_TOO_NEW = (7, 0), (10, 0)


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
    detail: str
    """Driver and compute capability, or the number of cores."""


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
        DeviceError: no driver, fewer GPUs than asked for, or one that this image has no kernels for.
    """
    return _cpu() if gpus == 0 else _gpus(gpus)


def check_gpu_memory(device: Device, gpu_memory_gib: float) -> None:
    """Compare a GPU with `compute.gpu_memory_gib`, which is nominal: drivers keep some, and vendors count in thousands.

    Raises:
        DeviceError: it has less than nine tenths of that.
    """
    if device.kind == "gpu" and device.memory_bytes < 0.9 * gpu_memory_gib * GIB:
        raise DeviceError(
            f"the GPU has {device.memory_bytes / GIB:.1f} GiB, and compute.gpu_memory_gib asks for {gpu_memory_gib:g}",
            "Send the run to a larger GPU, or lower compute.gpu_memory_gib.",
        )


def _cpu() -> Device:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return Device(
        kind="cpu",
        names=(model[0].partition(": ")[2] if model else platform.machine(),),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        detail=f"{len(os.sched_getaffinity(0))} cores",
    )


def _gpus(wanted: int) -> Device:
    import pynvml  # part of the training stack, and of no use without a GPU

    with _nvml():
        count = pynvml.nvmlDeviceGetCount()
        if count < wanted:
            raise DeviceError(f"compute.gpus is {wanted}, and this machine has {count}", "Ask for no more than it has.")
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(wanted)]
        names = tuple(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
        capabilities = [tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) for handle in handles]
        memory = min(int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
        driver = pynvml.nvmlSystemGetDriverVersion()
    for name, capability in zip(names, capabilities, strict=True):
        if not _LOWEST_CAPABILITY <= capability < _FIRST_TOO_NEW:
            raise DeviceError(
                f"{name} has compute capability {'.'.join(map(str, capability))}, for which this image has no kernels",
                "Ask for a GPU from Volta (7.0) to Hopper (9.0).",
            )
    lowest = ".".join(map(str, min(capabilities)))
    return Device("gpu", names, memory, f"driver {driver}, compute capability {lowest}")


@contextmanager
def _nvml() -> Iterator[None]:
    """The driver's library, opened; its errors are told as ours."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            yield
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise DeviceError(
            f"no usable GPU: NVML says {error}",
            "Run it on a node with an NVIDIA driver and a GPU, or say compute.gpus: 0 for a CPU.",
        ) from error


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
