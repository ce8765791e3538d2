"""Starts a child, hears its events and what it prints, and tells how it ended."""

import contextlib
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pydantic

from job.child_ending import ending
from job.contract.errors import BugError
from job.contract.events import Event, Failed, parse_event
from job.machine import read_memory_use
from job.settings import CHILD_GRACE_SECONDS
from job.watchdog import Watchdog

_AFTER_SECONDS = 10  # how long a process that a child left behind is listened to
_LONGEST_TURN_SECONDS = 1  # of listening; what is beyond it was something else, such as an upload or a frozen pod
_LONGEST_LINE = 1 << 20  # bytes; a bar that is drawn over and over has no line end
_LAST_WORDS = 8  # lines that a crash is told with
_running: set[subprocess.Popen[bytes]] = set()


def train_command(plan: Path, gpus: int) -> list[str]:
    """How training is started: alone, or one process for each GPU."""
    if gpus > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}"]
        return [sys.executable, *launcher, "-m", "job.train", str(plan)]
    return [sys.executable, "-m", "job.train", str(plan)]


def export_command(plan: Path, *flags: str) -> list[str]:
    """How the export is started: one process, a device's memory all for itself."""
    return [sys.executable, "-m", "job.export", *flags, str(plan)]


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    events: Path,
    on_event: Callable[[Event], None],
    on_line: Callable[[str], None],
    watchdog: Watchdog | None = None,
    grace_seconds: float = CHILD_GRACE_SECONDS,
) -> None:
    """Runs a child to its end.

    Args:
        command: its argument vector.
        environment: all of its variables.
        directory: its working directory.
        events: where its pipe is made.
        on_event: gets each event, in order.
        on_line: gets each line that it prints.
        watchdog: ends it when it hangs; None: it may.
        grace_seconds: from SIGTERM to SIGKILL, when it has to end before it has ended by itself.

    Raises:
        JobError: the kind that its exit code names, with the child's own words.
        DeviceError: it hung.
    """
    watchdog = watchdog or Watchdog(math.inf)
    last_words: deque[str] = deque(maxlen=_LAST_WORDS)
    failed: list[Failed] = []

    def hear(line: str) -> None:
        try:
            event = parse_event(line)
        except pydantic.ValidationError as error:
            raise BugError(f"a child told what is no event: {line[:200]}") from error
        if isinstance(event, Failed):
            failed.append(event)
        else:
            on_event(event)
        watchdog.hear(event)

    def read(line: str) -> None:
        last_words.append(line)
        on_line(line)

    memory = read_memory_use()
    with _pipe(events) as pipe, _process(command, environment, directory, grace_seconds) as process:
        assert process.stdout is not None
        _listen(process, {pipe: hear, process.stdout.fileno(): read}, watchdog)
        code = process.wait()
    if code:
        raise ending(Path(command[2]).name, code, failed, last_words, memory, read_memory_use())


@contextlib.contextmanager
def _pipe(path: Path) -> Iterator[int]:
    """The reading end of a new FIFO. A path, not a descriptor: torchrun passes no descriptors on."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)  # held, so that the pipe has no end while several processes come and go
    try:
        yield reader
    finally:
        os.close(writer)
        os.close(reader)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, grace_seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a process group of its own, which ends with the block whatever happens in it."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    _running.add(process)
    try:
        yield process
    finally:
        _end(process, grace_seconds)
        _running.discard(process)
        if process.stdout:
            process.stdout.close()


def _end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ends a child and all that it started: asked first, since torchrun's workers are in groups of their own."""
    # One that is stopped hears nothing before it goes on, but for the last of these.
    for signals in ((signal.SIGTERM, signal.SIGCONT), (signal.SIGKILL,)):
        with contextlib.suppress(ProcessLookupError):
            for signal_number in signals:
                os.killpg(process.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def end_running(seconds: float) -> None:
    """Ends whatever children there are: for an ending that does not unwind.

    Args:
        seconds: for how long a child that was asked to end is waited for, and then once more when it is killed.
    """
    for process in list(_running):
        _end(process, seconds)


def _listen(process: subprocess.Popen[bytes], listeners: dict[int, Callable[[str], None]], watchdog: Watchdog) -> None:
    """Hands each line of each descriptor on until the process has ended and all it wrote is read."""
    rest = dict.fromkeys(listeners, b"")
    deadline = math.inf
    turn = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for descriptor in listeners:
            selector.register(descriptor, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            if ended and deadline == math.inf:
                deadline = time.monotonic() + _AFTER_SECONDS
            turn, before = time.monotonic(), turn
            if not ended:
                watchdog.wait(process.pid, min(turn - before, _LONGEST_TURN_SECONDS))
            ready = selector.select(0 if ended else 0.2)
            for key, _ in ready:
                data = os.read(key.fd, 65536)
                watchdog.printed()
                if not data:
                    selector.unregister(key.fd)
                *lines, rest[key.fd] = (rest[key.fd] + data).split(b"\n")
                rest[key.fd] = rest[key.fd][-_LONGEST_LINE:]
                for line in lines:
                    # A progress bar draws over its own line; the last drawing is what is left of it.
                    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
                    if text.strip():
                        listeners[key.fd](text)
            if ended and (not ready or time.monotonic() > deadline):
                break
    for descriptor, data in rest.items():
        if text := data.decode("utf-8", "replace").strip():  # what a native crash says last has no line end
            listeners[descriptor](text)
