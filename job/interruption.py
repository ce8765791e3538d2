"""What SIGTERM does: it ends the run where it stands, or lets training save itself first.

The first one starts the grace period. Outside training it raises `ToldToStop` in the main thread, and the run unwinds.
While training has something to save it asks training to stop, and the run goes on until that is in the store. The second
one, and the end of the grace period, give up: nothing is unwound, for what hangs would hang there as well.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType

from job.contract.documents import Outcome


class ToldToStop(BaseException):
    """SIGTERM. Not an `Exception`, so that nothing takes it for a failure that it can live with."""


class Interruption:
    """The process's answer to SIGTERM.

    Args:
        grace_seconds: from the first SIGTERM to giving up.
        give_up: ends the process at once; gets the reason. May be called by any thread.
    """

    def __init__(self, grace_seconds: float, give_up: Callable[[str], None]) -> None:
        self._grace_seconds, self._give_up = grace_seconds, give_up
        self._ask: Callable[[], None] | None = None
        self._timer: threading.Timer | None = None
        self.last_words: Callable[[Outcome, float], None] = lambda _outcome, _seconds: None
        """Tells the store of an ending that is not unwound, within so many seconds; set where there is an attempt."""

    @property
    def asked(self) -> bool:
        """Whether SIGTERM has come."""
        return self._timer is not None

    def listen(self) -> None:
        """Takes SIGTERM over from now on."""
        signal.signal(signal.SIGTERM, self._told)

    def hold(self, ask: Callable[[], None]) -> None:
        """From now on there is something to save: SIGTERM calls `ask`, and the run goes on.

        Args:
            ask: called by the signal's handler, so it must not log, nor take a lock.
        """
        self._ask = ask
        if self.asked:
            ask()

    def release(self) -> None:
        """What there was to save is saved: from now on SIGTERM ends the run, and one that came meanwhile does so now."""
        self._ask = None
        if self.asked:
            raise ToldToStop

    def over(self) -> None:
        """The run has ended, and is not to be ended again."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
