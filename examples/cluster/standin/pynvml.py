"""NVIDIA's library, pretended: as many T4 as the device plugin gave this pod."""

import os
from types import SimpleNamespace

GIB = 1024**3


class NVMLError(Exception):
    """What the real one raises."""


def nvmlInit() -> None:
    if not nvmlDeviceGetCount():
        raise NVMLError("Driver Not Loaded")


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return int(os.environ.get("PRETENDED_GPUS", 0))


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(handle: int) -> str:
    return "pretended T4"


def nvmlDeviceGetCudaComputeCapability(handle: int) -> tuple[int, int]:
    return 7, 5


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=15 * GIB)


def nvmlSystemGetDriverVersion() -> str:
    return "550.0 (pretended)"
