"""The log of one pod, followed over streams that are cut, rotated or hang."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Self

from job.contract.errors import ConfigError
from launcher.cluster import Cluster
from launcher.kube import Lost
from launcher.log_lines import Deduplicator, Told
from launcher.manifest import CONTAINER

_HOLD_SECONDS = 0.3
_TRIES = 3
_QUEUED_LINES = 1000


class PodState(Enum):
    """How a pod is, as far as its log is concerned."""

    GOES_ON = auto()
    ENDED = auto()
    """Its container has: the log is whole."""
    LEFT = auto()
    """The run is over, and nobody waits for this container."""
    GONE = auto()


_OPEN = (PodState.GOES_ON, PodState.LEFT)


@dataclass(frozen=True)
class Pace:
    """How long is waited."""

    poll_seconds: float
    """Between two looks at how the pod is, also while its stream hangs."""
    silence_seconds: float
    """After so long without a line a stream is opened again."""


class PodLog:
    """The log of one pod.

    Args:
        cluster: where it is.
        pod: its name.
        lines: what was told of it.
        look: how it is now.
        pace: how long is waited.
    """

    def __init__(
        self, cluster: Cluster, pod: str, lines: Deduplicator, look: Callable[[], PodState], pace: Pace
    ) -> None:
        self._cluster, self._pod, self._lines, self._pace = cluster, pod, lines, pace
        self._look_again = look
        self._state = PodState.GOES_ON
        self._heard = time.monotonic()
        self._over_since: float | None = None

    def follow(self) -> Iterator[Told]:
        """All lines until the container has ended. The end of a stream proves nothing: it may have been cut.

        One that is still open a while after all is over is left.
        """
        self._look()
        hangs = False
        while self._state in _OPEN and not self._is_overdue:
            hangs = yield from self._stream()
        yield from self.rest(in_haste=hangs or self._state is PodState.LEFT)

    def rest(self, in_haste: bool = False) -> Iterator[Told]:
        """What the log has by now and was not told, and why that may not be all.

        Args:
            in_haste: whether to wait no longer than for a look.
        """
        patience, tries = (self._pace.poll_seconds, 1) if in_haste else (self._pace.silence_seconds, _TRIES)
        why = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(self._pace.poll_seconds)
            with self._reading(follow=False) as reading:
                while isinstance(found := reading.next(patience), bytes):
                    yield from self._lines.take(found)
            why = found.why if found else "it does not come"
            if found and not isinstance(found.error, Lost):
                break
        yield from self._lines.end(why or ("its container has not ended" if self._state is PodState.LEFT else ""))

    def _stream(self) -> Generator[Told, None, bool]:
        """One stream, until it ends, falls silent or is overdue; whether it hangs."""
        opened = looked = came = time.monotonic()
        held = found = None
        with self._reading(follow=True) as reading:
            while not self._is_overdue and time.monotonic() - came < self._pace.silence_seconds:
                if time.monotonic() - looked >= self._pace.poll_seconds:
                    self._look()
                    looked = time.monotonic()
                found = reading.next(self._pace.poll_seconds if held is None else _HOLD_SECONDS)
                if isinstance(found, End):
                    break
                yield from self._take(held)
                held = found
                came = came if found is None else time.monotonic()
        self._look()
        # The line right before the end may be cut. It comes again, whole, unless its pod has gone.
        if self._state is PodState.GONE:
            yield from self._take(held)
        if self._state in _OPEN and self._heard < opened:
            time.sleep(self._pace.poll_seconds)
        return not isinstance(found, End)

    def _take(self, line: bytes | None) -> list[Told]:
        told = self._lines.take(line) if line is not None else []
        self._heard = time.monotonic() if told else self._heard
        return told

    def _look(self) -> None:
        self._state = self._look_again()
        if self._state is PodState.GOES_ON:
            self._over_since = None
        elif self._over_since is None:
            self._over_since = time.monotonic()

    @property
    def _is_overdue(self) -> bool:
        """Whether all is over, and no new line has come for a while."""
        quiet_since = max(self._heard, self._over_since or 0)
        return self._over_since is not None and time.monotonic() - quiet_since >= self._pace.poll_seconds

    def _reading(self, follow: bool) -> "Reading":
        self._lines.resume()
        return Reading(self._cluster.log(self._pod, CONTAINER, self._lines.since, follow))


@dataclass(frozen=True)
class End:
    """A stream has ended."""

    error: Lost | ConfigError | None

    @property
    def why(self) -> str:
        """Why it is not whole; empty where it is."""
        return self.error.message if self.error else ""


class Reading:
    """A stream read by a thread of its own, so that whoever waits for a line can look elsewhere meanwhile.

    A thread whose stream hangs cannot be ended; it ends when the stream does, for at the latest a minute's silence.
    """

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._queue: queue.Queue[bytes | Exception | None] = queue.Queue(_QUEUED_LINES)
        self._left = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._read, name="log", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    def next(self, seconds: float) -> bytes | End | None:
        """The next line or the end; None when nothing comes for so long.

        Raises:
            JobError: the server refuses it for another reason than that there is no log.
        """
        try:
            found = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if found is None or isinstance(found, Lost | ConfigError):
            return End(found)
        if isinstance(found, Exception):
            raise found
        return found

    def _read(self) -> None:
        try:
            for line in self._lines:
                self._put(line)
                if self._left.is_set():
                    return
        except Exception as error:  # whatever it is, whoever waits must be told
            self._put(error)
        else:
            self._put(None)

    def _put(self, found: bytes | Exception | None) -> None:
        while not self._left.is_set():
            try:
                self._queue.put(found, timeout=1)
            except queue.Full:
                continue
            return
