"""What a child's end means, beside what the kernel counted of its memory."""

import signal

import pytest

from job.child_ending import ending
from job.contract.disk import GIB
from job.contract.errors import BugError, DataError, JobError, KilledError
from job.contract.events import Failed
from job.machine import MemoryUse

BEFORE = MemoryUse(oom_kills=2, limit=16 * GIB, peak=3 * GIB)
QUIET = MemoryUse(oom_kills=2, limit=16 * GIB, peak=9 * GIB)
OOM = MemoryUse(oom_kills=3, limit=16 * GIB, peak=16 * GIB)
UNKNOWN = MemoryUse(oom_kills=None, limit=None, peak=None)
BUG = Failed(code=70, message="DataLoader worker (pid 7) is killed by signal: Killed")


def ended(code: int, after: MemoryUse, *failed: Failed, before: MemoryUse = BEFORE) -> JobError:
    return ending("job.train", code, failed, ["its last line"], before, after)


# By itself, under torchrun which tells a rank's signal by a 1, a worker of it, and the export's converter.
KILLS = [(-9, ()), (1, ()), (70, (BUG,)), (137, (Failed(code=137, message="convert was killed"),))]


@pytest.mark.parametrize(("code", "failed"), KILLS)
def test_what_the_kernel_killed_for_memory_is_told_with_numbers(code: int, failed: tuple[Failed, ...]) -> None:
    error = ended(code, OOM, *failed)
    assert isinstance(error, KilledError)
    assert error.code == 137
    assert error.message.startswith(
        "the kernel killed a process of job.train for memory: the limit is 16.00 GiB, and at most 16.00 GiB were used."
    )
    assert "its last line" in error.message
    assert "Raise compute.memory_gib" in error.resolution


def test_without_a_limit_it_was_the_machines_memory() -> None:
    error = ended(-9, MemoryUse(oom_kills=1, limit=None, peak=None), before=MemoryUse(0, None, None))
    assert "for memory: the machine's memory ran out. It said last" in error.message


def test_what_somebody_else_killed_is_not_said_to_be_for_memory() -> None:
    error = ended(-9, QUIET)
    assert (type(error), error.code) == (KilledError, 137)
    assert "ended by SIGKILL, and not by the kernel for memory: somebody else killed it" in error.message
    assert "memory_gib" not in error.resolution


def test_where_the_kernel_does_not_tell_memory_is_a_guess() -> None:
    error = ended(-9, UNKNOWN, before=UNKNOWN)
    assert error.message.startswith("job.train was ended by SIGKILL. ")
    assert error.resolution == "Raise compute.memory_gib if it was for memory."


def test_a_child_that_knows_what_ended_it_is_believed() -> None:
    told = ended(65, OOM, Failed(code=65, message="m", resolution="r"), BUG)
    assert (type(told), told.message, told.resolution) == (DataError, "m", "r")


def test_a_process_of_a_child_that_was_killed_keeps_its_code() -> None:
    told = ended(137, QUIET, Failed(code=137, message="convert_hf_to_gguf.py was killed", resolution="r"))
    assert (type(told), told.code, told.message) == (KilledError, 137, "convert_hf_to_gguf.py was killed")


def test_other_signals_and_codes() -> None:
    assert ended(-signal.SIGSEGV, QUIET).code == 139
    assert "SIGSEGV" in ended(-signal.SIGSEGV, QUIET).message
    assert type(ended(1, QUIET)) is BugError
    assert type(ended(99, QUIET, Failed(code=99, message="m"))) is BugError
