"""The GPUs, as NVML, NVIDIA's own library, tells of them, and whether this image can train on them.

No card has met this: what the numbers below rest on, and what else is known without one, is in docs/gpu.md.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from job.contract.errors import ConfigError, DeviceError

# torch 2.6.0 of CUDA 12.4 brings kernels for 5.0 to 9.0 and no PTX to compile newer ones from; Unsloth and Triton begin
# with Volta. A kernel runs on later cards of its own major version: 8.6 on an L4 (8.9). Blackwell is 10.0 and above.
_LOWEST_CAPABILITY, _FIRST_TOO_NEW = (7, 0), (10, 0)
# CUDA's minor version compatibility: what is built by any 12.x runs on every driver since that of 12.0, 525.60.13.
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_FIRST_CUDA = (12, 0)

_Handle = Any  # NVML's opaque reference to a device


@dataclass(frozen=True)
class Gpu:
    """A GPU, or the slice of one (MIG) that this container was given."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    is_slice: bool
    uncorrected_errors: int
    """Of its memory, since its driver was loaded; 0 where it does not count them."""


@dataclass(frozen=True)
class Driver:
    """The GPUs' driver."""

    version: str
    cuda: tuple[int, int]
    """The CUDA that it was made for. It runs programs of this major version, and of older ones."""


def see(visible: str | None) -> tuple[Driver, list[Gpu]]:
    """The driver, and the GPUs that CUDA may use.

    Args:
        visible: CUDA_VISIBLE_DEVICES, which NVML itself does not heed; None: not set. By number it is taken to count
            as NVML does, from which CUDA departs only where cards of different speeds share a machine.

    Raises:
        DeviceError: no driver, no CUDA library, or a GPU that does not answer.
    """
    import pynvml  # part of the training stack, and of no use without a GPU

    with _nvml():
        driver = Driver(pynvml.nvmlSystemGetDriverVersion(), _cuda_version())
        return driver, [_gpu(device, whole) for device, whole in _visible(visible)]


def check_gpus(driver: Driver, gpus: Sequence[Gpu], wanted: int, visible: str | None) -> None:
    """Refuse GPUs that a run of this image cannot use.

    Raises:
        DeviceError: the driver is too old, there are fewer GPUs than `wanted`, or one that there are no kernels for.
        ConfigError: several are asked for, and they are slices.
    """
    if driver.cuda < _FIRST_CUDA:
        raise DeviceError(
            f"the driver {driver.version} is made for CUDA {_dotted(driver.cuda)}, and this image is of CUDA 12.4",
            "Send the run to a node with driver 525.60.13 or newer; 550.54.14 is CUDA 12.4's own.",
        )
    if len(gpus) < wanted:
        there = "this machine has" if visible is None else f"CUDA_VISIBLE_DEVICES={visible} leaves"
        raise DeviceError(f"compute.gpus is {wanted}, and {there} {len(gpus)}", "Ask for no more than it has.")
    # https://docs.nvidia.com/datacenter/tesla/mig-user-guide: a process of CUDA enumerates one slice, however many.
    if wanted > 1 and any(gpu.is_slice for gpu in gpus[:wanted]):
        raise ConfigError(
            f"compute.gpus is {wanted}, and these are slices of a GPU (MIG), of which CUDA shows a process only one",
            "Set compute.gpus to 1, or send the run to whole GPUs.",
        )
    for gpu in gpus[:wanted]:
        if not _LOWEST_CAPABILITY <= gpu.capability < _FIRST_TOO_NEW:
            raise DeviceError(
                f"{gpu.name} has compute capability {_dotted(gpu.capability)}, for which this image has no kernels",
                "Ask for a GPU from Volta (7.0) to Hopper (9.0).",
            )


def describe(driver: Driver, gpus: Sequence[Gpu]) -> str:
    """Driver and compute capability, for the log."""
    lowest = min(gpu.capability for gpu in gpus)
    return f"driver {driver.version} (CUDA {_dotted(driver.cuda)}), compute capability {_dotted(lowest)}"


def memory_errors(gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """A sentence about each GPU that has met errors in its memory which it could not correct."""
    return tuple(
        f"{gpu.name} has had {gpu.uncorrected_errors} uncorrected memory errors since its driver was loaded"
        for gpu in gpus
        if gpu.uncorrected_errors
    )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@contextlib.contextmanager
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


def _cuda_version() -> tuple[int, int]:
    """Of the libcuda.so.1 that a program would load, a forward compatibility package's included."""
    import pynvml

    try:
        number = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise DeviceError(
            "the driver is there, and its libcuda.so.1 is not",
            "Let the container's NVIDIA_DRIVER_CAPABILITIES name compute and utility.",
        ) from error
    return number // 1000, number % 1000 // 10


def _visible(visible: str | None) -> list[tuple[_Handle, _Handle]]:
    """Each device that CUDA may use, beside the whole GPU that it is or is a slice of."""
    import pynvml

    wholes = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    by_index = [[(device, whole) for device in _slices(whole)] for whole in wholes]
    everything = [pair for pairs in by_index for pair in pairs]
    if visible is None:
        return everything
    chosen = []
    for name in map(str.strip, visible.split(",")):
        if name.isdecimal():
            named = by_index[int(name)] if int(name) < len(by_index) else []
        else:
            named = [pair for pair in everything if name and pynvml.nvmlDeviceGetUUID(pair[0]).startswith(name)]
        if not named:
            break  # as CUDA does: what comes after a name that is none is hidden, too
        chosen.append(named[0])
    return chosen


def _slices(whole: _Handle) -> list[_Handle]:
    """The slices of a GPU that is cut up, as far as this container was given them; else the GPU itself."""
    import pynvml

    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(whole)
    except pynvml.NVMLError_NotSupported:
        return [whole]
    if current != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [whole]
    slices = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            slices.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index))
    return slices


def _gpu(device: _Handle, whole: _Handle) -> Gpu:
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(whole)
    errors = 0
    with contextlib.suppress(pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
        errors = pynvml.nvmlDeviceGetTotalEccErrors(
            whole, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )
    return Gpu(
        name=pynvml.nvmlDeviceGetName(device),
        capability=(major, minor),
        # Asked of the slice: the whole GPU's is told to administrators only.
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(device).total),
        is_slice=device is not whole,
        uncorrected_errors=errors,
    )
