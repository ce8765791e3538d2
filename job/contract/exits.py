"""The exit codes of the job, and what each makes of the Kubernetes Job."""

from enum import IntEnum


class Exit(IntEnum):
    """How an attempt ended. The numbers follow sysexits.h where it has one."""

    OK = 0
    USAGE = 64
    DATA = 65
    NO_INPUT = 66
    S3_UNAVAILABLE = 69
    BUG = 70
    DEVICE = 71
    TAKEN = 73
    IO = 74
    INTERRUPTED = 75
    FENCED = 76
    NO_PERMISSION = 77
    CONFIG = 78
    GPU_OOM = 79


# Ended by the runtime, the kernel or Kubernetes: start error, abort, bus error, kill, segmentation fault, termination.
KILLED_CODES = frozenset({128, 134, 135, 137, 139, 143})

# A new attempt may well succeed; it counts against the Job's backoffLimit.
RETRIED_CODES = frozenset({Exit.S3_UNAVAILABLE, Exit.DEVICE, Exit.IO, Exit.FENCED}) | KILLED_CODES

# A new attempt goes on where this one stopped, and nobody is to blame: not counted.
IGNORED_CODES = frozenset({Exit.INTERRUPTED})


def exit_name(code: int) -> str:
    """The table's name of an exit code; ``KILLED`` for one that a signal or the runtime gave, else ``UNKNOWN``."""
    if code >= min(KILLED_CODES):
        return "KILLED"
    return Exit(code).name if code in set(Exit) else "UNKNOWN"
