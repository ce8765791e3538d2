"""Tells how far a transfer has come."""

import threading
import time

import structlog

log = structlog.get_logger()
_INTERVAL_SECONDS = 2.0  # often enough for a bar, seldom enough for a log that is kept


class Moving:
    """A `Progress` that logs `moved` events; threads may share it.

    Args:
        what: download or upload.
        total: bytes in all.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._began = self._told = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """More bytes have moved."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._told < _INTERVAL_SECONDS:
                return
            self._told = now
            done = self._done
        rate = done / 1e6 / (now - self._began)
        log.info("moved", what=self._what, bytes=done, of_bytes=self._total, mb_per_second=round(rate, 1))
