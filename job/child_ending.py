"""How a child ended: from its code, what it told, and what the kernel counted, to one error. Pure."""

import signal
from collections.abc import Sequence

from job.contract.disk import GIB
from job.contract.errors import ERROR_BY_CODE, RAISE_MEMORY, BugError, JobError, KilledError
from job.contract.events import Failed
from job.contract.exits import Exit
from job.machine import MemoryUse

_SIGNALS = 128  # codes above it name one
_LESS_MEMORY = f"{RAISE_MEMORY}. On a CPU a lower training.per_device_train_batch_size or max_seq_length helps, too."


def ending(
    name: str, code: int, failed: Sequence[Failed], last_words: Sequence[str], before: MemoryUse, after: MemoryUse
) -> JobError:
    """The error that a child's end means.

    Args:
        name: what it is called.
        code: what it ended with, not 0; below 0 a signal.
        failed: what its processes told. The first counts: the other ranks only follow it.
        last_words: what was printed last.
        before: the control group's memory when it began.
        after: the same when it had ended.
    """
    said = "\n".join(("It said last:", *last_words)) if last_words else "It said nothing."
    unforeseen = not failed or failed[0].code == Exit.BUG or failed[0].code > _SIGNALS
    if unforeseen and _oom_kills(before, after):
        return KilledError(
            f"the kernel killed a process of {name} for memory: {_numbers(after)}. {said}", _LESS_MEMORY, signal.SIGKILL
        )
    if failed:
        first = failed[0]
        if first.code > _SIGNALS:
            return KilledError(first.message, first.resolution, first.code - _SIGNALS)
        return ERROR_BY_CODE.get(first.code, BugError)(first.message, first.resolution)
    if code >= 0:
        return BugError(f"{name} ended with code {code} and told nothing. {said}")
    ended_by = f"{name} was ended by {signal.Signals(-code).name}"
    if -code != signal.SIGKILL:
        return KilledError(f"{ended_by}. {said}", "", -code)
    if _oom_kills(before, after) is None:
        return KilledError(f"{ended_by}. {said}", f"{RAISE_MEMORY} if it was for memory.", -code)
    return KilledError(
        f"{ended_by}, and not by the kernel for memory: somebody else killed it. {said}",
        "Ask who ends processes on that node.",
        -code,
    )


def _oom_kills(before: MemoryUse, after: MemoryUse) -> int | None:
    """Processes killed for memory between the two; None where that is not told."""
    if before.oom_kills is None or after.oom_kills is None:
        return None
    return after.oom_kills - before.oom_kills


def _numbers(use: MemoryUse) -> str:
    limit = "the machine's memory ran out" if use.limit is None else f"the limit is {use.limit / GIB:.2f} GiB"
    return limit if use.peak is None else f"{limit}, and at most {use.peak / GIB:.2f} GiB were used"
