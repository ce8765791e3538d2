"""Everything that can end a run, as one small tree.

JobError                what, and what to do about it; ``code`` is the process's exit code
├── UsageError          64  bad flags or environment
├── DataError           65  bad rows, an unsafe or unusable base model, dataset or template
├── NoInputError        66  an object that is missing, empty or archived
├── UnavailableError    69  the store did not answer within the retry budget
├── BugError            70  what must not happen: NaN loss, labels that differ, no progress in three attempts
├── DeviceError         71  no GPU, or one that this image cannot use; a child that hangs
├── TakenError          73  the run id belongs to another spec, or a live attempt elsewhere runs it
├── LocalIOError        74  no space left, or a disk that fails
├── InterruptedRun      75  told to stop; what there was to save is saved
├── FencedError         76  a newer attempt has taken over
├── PermissionDenied    77  the store refuses us
├── ConfigError         78  the config, or a setting that this machine or store cannot honour
├── GpuOutOfMemory      79  the GPU's memory does not hold this config
└── KilledError   128 + n   a child was ended by signal n
"""

import errno
from collections.abc import Sequence

from job.contract.exits import Exit


class JobError(Exception):
    """An ending that the user is told about in one sentence.

    Args:
        message: what is wrong and where.
        resolution: what to do; empty when there is nothing to advise.
    """

    code: int = Exit.BUG

    def __init__(self, message: str, resolution: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.resolution = resolution


def together(problems: Sequence[JobError]) -> JobError:
    """Several problems told at once, as an error of the first one's kind."""
    first, *others = problems
    if not others:
        return first
    told = "".join(f"\n- {each.message}. {each.resolution}".rstrip() for each in problems)
    return type(first)(f"{len(problems)} problems:{told}")


class UsageError(JobError):
    """Bad flags or environment."""

    code = Exit.USAGE


class DataError(JobError):
    """Bad rows, or an unsafe or unusable base model, dataset or template."""

    code = Exit.DATA


class NoInputError(JobError):
    """An input object that is missing, empty or archived."""

    code = Exit.NO_INPUT


class UnavailableError(JobError):
    """The store did not answer within the retry budget."""

    code = Exit.S3_UNAVAILABLE


class BugError(JobError):
    """What must not happen: a failed invariant, not a user's mistake."""

    code = Exit.BUG


class DeviceError(JobError):
    """No GPU, or one that this image cannot use; or a child that hangs."""

    code = Exit.DEVICE


class TakenError(JobError):
    """The run id belongs to another spec, or a live attempt elsewhere runs it."""

    code = Exit.TAKEN


class LocalIOError(JobError):
    """No space left on scratch, or a disk that fails."""

    code = Exit.IO


class InterruptedRun(JobError):
    """Told to stop, and what there was to save is saved."""

    code = Exit.INTERRUPTED


class FencedError(JobError):
    """A newer attempt of this run has taken over."""

    code = Exit.FENCED


class PermissionDenied(JobError):
    """The store refuses us."""

    code = Exit.NO_PERMISSION


class ConfigError(JobError):
    """An invalid config, or a setting that this machine or store cannot honour."""

    code = Exit.CONFIG


class GpuOutOfMemory(JobError):
    """torch's OutOfMemoryError, told with the key to lower."""

    code = Exit.GPU_OOM


class KilledError(JobError):
    """A child was ended by a signal.

    Args:
        signal: its number; the process ends with 128 plus it.
    """

    def __init__(self, message: str, resolution: str, signal: int) -> None:
        super().__init__(message, resolution)
        self.code = 128 + signal


ERROR_BY_CODE: dict[int, type[JobError]] = {
    error.code: error
    for error in (
        UsageError,
        DataError,
        NoInputError,
        UnavailableError,
        BugError,
        DeviceError,
        TakenError,
        LocalIOError,
        InterruptedRun,
        FencedError,
        PermissionDenied,
        ConfigError,
        GpuOutOfMemory,
    )
}


RAISE_MEMORY = "Raise compute.memory_gib"
"""How the advice begins where a process was, or may have been, killed for memory: `finetune why` looks for it."""

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


def is_of_disk(error: BaseException) -> bool:
    """Whether a disk is full or fails. Libraries in Rust and C++ tell the first in words only, and so does `shutil.Error`."""
    return "No space left on device" in str(error) or (isinstance(error, OSError) and error.errno in _DISK)
