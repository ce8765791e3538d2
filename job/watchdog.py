"""A child that hangs: how that is seen, and what it was doing."""

import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from job.contract.errors import DeviceError
from job.contract.events import Alive, Event, Trained, Training

_STEPS = 20  # of the usual length, without a sign of life in between
_REMEMBERED = 100  # signs, of which the usual length is taken
_WORK_SHARE = 1 / 60  # of the time; threads that only wake up to look use less
_STACKS_SECONDS = 2
_APART_SECONDS = 0.1  # they print letter by letter, and would mix
_PROC = Path("/proc")


class Watchdog:
    """Counts for how long a child has given no sign of life.

    Events are signs. Outside the training loop whatever is printed is one, too; within it other threads go on printing
    while the first one waits for ever. Of work on processors alone the time that they were used is one as well: llama.cpp
    goes over a large model without a word.

    Args:
        floor_seconds: the least silence that is too long. It is 20 steps where these take longer.
        counts_work: whether used processors are a sign. Not for training: who waits for a GPU uses one for nothing.
    """

    def __init__(self, floor_seconds: float, *, counts_work: bool = False) -> None:
        self._floor, self._counts_work = floor_seconds, counts_work
        self._silent = 0.0
        self._is_looping = False
        self._since_alive: float | None = None
        self._between: deque[float] = deque(maxlen=_REMEMBERED)
        self._worked = 0.0
        self._stacks_left: float | None = None

    @property
    def limit(self) -> float:
        """The silence that is too long by now, in seconds."""
        usual = statistics.median(self._between) if self._is_looping and self._between else 0
        return max(self._floor, _STEPS * usual)

    def hear(self, event: Event) -> None:
        """Takes in an event, once whoever it is for has done with it."""
        self._silent, self._stacks_left = 0, None
        match event:
            case Training():
                self._is_looping = True
            case Trained():
                self._is_looping = False
            case Alive():
                if self._since_alive is not None:
                    self._between.append(self._since_alive)
                self._since_alive = 0
            case _:
                pass

    def printed(self) -> None:
        """Takes in that something was printed."""
        if not self._is_looping:
            self._silent = 0

    def wait(self, pid: int, seconds: float) -> None:
        """Counts time in which the child was listened to.

        Args:
            pid: the child.
            seconds: how long. Not a clock's time: neither the supervisor's own work nor a frozen container is silence.

        Raises:
            DeviceError: it hangs. Its processes were asked for their stacks, and had a moment to print them.
        """
        if self._stacks_left is not None:
            self._stacks_left -= seconds
            if self._stacks_left < 0:
                raise DeviceError(
                    f"the child hangs: it gave no sign of life for {self.limit:.0f} s. "
                    "The stacks of its threads are in the log",
                    "Another attempt goes on from the newest checkpoint. If that one hangs as well, look at the stacks, "
                    "and for an XID in the node's kernel log. Where it only is that slow, raise FINETUNE_WATCHDOG_SECONDS.",
                )
            return
        self._silent += seconds
        if self._since_alive is not None:
            self._since_alive += seconds
        if self._silent < self.limit:
            return
        if self._counts_work and self._has_worked(pid):
            self._silent = 0
            return
        ask_for_stacks(pid)
        self._stacks_left = _STACKS_SECONDS

    def _has_worked(self, pid: int) -> bool:
        """Whether the child has used processors since this was last asked, so a hang takes two limits to be seen."""
        before, self._worked = self._worked, sum(_processor_seconds(one) for one in descendants(pid))
        return self._worked - before >= _WORK_SHARE * self.limit


def ask_for_stacks(pid: int) -> None:
    """Has a process and its descendants print the stack of each thread; those alone that are prepared for it."""
    for one in descendants(pid):
        try:
            caught = (_PROC / str(one) / "status").read_text().partition("SigCgt:")[2].split()[0]
            if int(caught, 16) >> (signal.SIGUSR1 - 1) & 1:
                os.kill(one, signal.SIGUSR1)
                time.sleep(_APART_SECONDS)
        except OSError:  # it has ended meanwhile
            continue


def descendants(pid: int) -> Iterator[int]:
    """A process and all that it started, in whatever group or session."""
    parents: dict[int, list[int]] = {}
    for path in _PROC.glob("[0-9]*"):
        if fields := _stat(int(path.name)):
            parents.setdefault(int(fields[1]), []).append(int(path.name))
    found = [pid]
    for one in found:
        yield one
        found += parents.get(one, [])


def _processor_seconds(pid: int) -> float:
    """What a process has used, and those of its children that have ended."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; empty when there is no such process."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
