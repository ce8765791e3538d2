"""The real supervisor as a process whose children are the stand-ins, and its ways to end."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from job.storage.opening import open_storage
from job.watchdog import descendants
from tests.cluster.node.attempts import adapter
from tests.job.conftest import REPOSITORY, Pod
from tests.storage.faulty_s3 import Answer, BrokenConnection, Fault, Request, Send

SOAK = os.environ.get("FINETUNE_SOAK") == "1"
"""Whether there is time for every moment, and not only for a seeded choice of them."""
ONE_BEAT = "3600"
"""Seconds between the beats of a heart that beats once: on a busy machine such a run makes no more requests than on another."""
_SITE = Path(__file__).parent / "site"
_AT_A_TIME = 2  # a run waits half of its time

Case = TypeVar("Case")


@dataclass
class StandIn(Pod):
    """A pod whose training and export are the stand-ins of examples/cluster/standin."""

    def process(self, *flags: str, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
        """Starts it; the caller sees it end."""
        ours = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{_SITE}", "FINETUNE_STALE_SECONDS": "1"}
        return super().process(*flags, prefix=prefix, **{**ours, **self.variables, **variables})

    def beside(self, name: str, **variables: str) -> "StandIn":
        """Another pod of the same run, on another machine."""
        place = self.scratch.parent / name
        place.mkdir()
        return replace(self, scratch=place / "scratch", variables={**self.variables, **variables})

    @property
    def run(self) -> str:
        """The id of the one run under its root."""
        [run] = {stat.key.split("/")[1] for stat in open_storage(self.root).list("runs/")}
        return run

    def left(self) -> list[str]:
        """Command lines of its processes that live: each has a variable that names its scratch."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.scratch).encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " "))
        return found

    def finish(self) -> str:
        """Starts it, and it ends well; the SHA-256 of the run's adapter."""
        ended = self.start()
        assert ended.code == 0, ended.printed
        return adapter(open_storage(self.root), self.run)


@dataclass
class Process:
    """A supervisor that a fault has to find: the fault is there before the process is."""

    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def tree(self) -> list[int]:
        """The supervisor and all that it started, stopped."""
        [process] = self.started
        return stopped(process)

    def kill(self) -> None:
        """Ends all of them without a word."""
        [process] = self.started
        kill(process)


def stopped(process: subprocess.Popen[str]) -> list[int]:
    """The processes of a supervisor, itself the first; none of them runs any more."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGSTOP)
        found = list(descendants(process.pid))
        send(found, signal.SIGSTOP)
        return found
    return []


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a supervisor and its children as a lost node does."""
    send(stopped(process), signal.SIGKILL)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """A signal to each that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def dies(process: Process, *, forwarded: bool) -> Fault:
    """The request is the supervisor's last: the server never gets it, or does as it asks and nobody hears of it."""

    def fault(request: Request, send: Send) -> Answer:
        if forwarded:
            send(request)
        process.kill()
        raise BrokenConnection

    return fault


def log_of(printed: str) -> list[dict[str, Any]]:
    """The lines of a log; of one that was killed, the last may be cut."""
    lines = printed.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def side_by_side(look: Callable[[Case], None], cases: Iterable[Case]) -> None:
    """Looks at each case, and raises what the first of those that failed raised."""
    with ThreadPoolExecutor(_AT_A_TIME) as workers:
        for _ in workers.map(look, cases):
            pass
