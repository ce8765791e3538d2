"""What ends a run from outside: SIGTERM, and a newer attempt.

SIGTERM ends the run where it stands, or lets training save itself first. The first one starts the grace period. Outside
training it raises `ToldToStop` in the main thread, and the run unwinds. While training has something to save it asks
training to stop, and the run goes on until that is in the store. The second one, and the end of the grace period, give
up: nothing is unwound, for what hangs would hang there as well.

A newer attempt leaves nothing to save: `Overtaken` is raised in the main thread, wherever that is.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType

from job.contract.documents import Outcome
from job.contract.errors import FencedError


class ToldToStop(BaseException):
    """SIGTERM. Not an `Exception`, so that nothing takes it for a failure that it can live with."""


class Overtaken(BaseException):
    """A newer attempt has taken the run over. No `Exception` either.

    Args:
        by: says which.
    """

    def __init__(self, by: FencedError) -> None:
        super().__init__(by.message)
        self.by = by


class Interruption:
    """The process's answer to SIGTERM, and to a newer attempt.

    Args:
        grace_seconds: from the first SIGTERM to giving up.
        give_up: ends the process at once; gets the reason. May be called by any thread.
    """

    def __init__(self, grace_seconds: float, give_up: Callable[[str], None]) -> None:
        self._grace_seconds, self._give_up = grace_seconds, give_up
        self._ask: Callable[[], None] | None = None
        self._timer: threading.Timer | None = None
        self._overtaken: FencedError | None = None
        self.last_words: Callable[[Outcome, float], None] = lambda _outcome, _seconds: None
        """Tells the store of an ending that is not unwound, within so many seconds; set where there is an attempt."""

    @property
    def has_come(self) -> bool:
        """Whether the run ends from outside, and waits for nothing that may hang."""
        return self._is_told or self._overtaken is not None

    @property
    def _is_told(self) -> bool:
        """Whether SIGTERM has come."""
        return self._timer is not None

    def listen(self) -> None:
        """Takes SIGTERM over from now on, and the signal by which a thread interrupts the main one."""
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGUSR1, self._woken)

    def overtake(self, by: FencedError) -> None:
        """Ends the run where it stands. For any thread."""
        self._overtaken = by
        main = threading.main_thread().ident
        assert main is not None  # it runs
        signal.pthread_kill(main, signal.SIGUSR1)

    def hold(self, ask: Callable[[], None]) -> None:
        """From now on there is something to save: SIGTERM calls `ask`, and the run goes on.

        Args:
            ask: called by the signal's handler, so it must not log, nor take a lock.
        """
        self._ask = ask
        if self._is_told:
            ask()

    def release(self) -> None:
        """What there was to save is saved: from now on SIGTERM ends the run, and one that came meanwhile does so now."""
        self._ask = None
        if self._is_told:
            raise ToldToStop

    def over(self) -> None:
        """The run has ended, and is not to be ended again."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        if self._timer:
            self._timer.cancel()

    def _told(self, _: int, __: FrameType | None) -> None:
        if self._timer:
            self._give_up("ended by a second SIGTERM, before everything was saved")
            return
        words = f"ended by SIGTERM: not everything could be saved within {self._grace_seconds:g} s"
        self._timer = threading.Timer(self._grace_seconds, self._give_up, [words])
        self._timer.daemon = True
        self._timer.start()
        if self._ask is None:
            raise ToldToStop
        self._ask()

    def _woken(self, _: int, __: FrameType | None) -> None:
        if self._overtaken:
            raise Overtaken(self._overtaken)
