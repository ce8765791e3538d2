"""NVIDIA's library, pretended: as many T4 as the device plugin gave this pod."""

import os
from types import SimpleNamespace

GIB = 1024**3

NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0


class NVMLError(Exception):
    """What the real one raises."""


class NVMLError_NotSupported(NVMLError):
    """A card that cannot tell."""


class NVMLError_NoPermission(NVMLError):
    """What administrators alone are told."""


def nvmlInit() -> None:
    if not nvmlDeviceGetCount():
        raise NVMLError("Driver Not Loaded")


def nvmlShutdown() -> None:
    pass


def nvmlSystemGetDriverVersion() -> str:
    return "550.0 (pretended)"


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return 12040


def nvmlDeviceGetCount() -> int:
    return int(os.environ.get("PRETENDED_GPUS", 0))


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetMigMode(handle: int) -> list[int]:
    raise NVMLError_NotSupported


def nvmlDeviceGetUUID(handle: int) -> str:
    return f"GPU-pretended-{handle}"


def nvmlDeviceGetName(handle: int) -> str:
    return "pretended T4"


def nvmlDeviceGetCudaComputeCapability(handle: int) -> tuple[int, int]:
    return 7, 5


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=15 * GIB)


def nvmlDeviceGetTotalEccErrors(handle: int, kind: int, counter: int) -> int:
    return 0
