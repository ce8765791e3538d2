"""Where an attempt is: its stage, how far it has come in it, and how long each took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from job.contract.documents import Stage

log = structlog.get_logger()


@dataclass
class Stages:
    """Written by the supervisor, read by the heartbeat and by whoever tells how it ended."""

    current: Stage = "start"
    seconds: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    of: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None

    @contextmanager
    def enter(self, stage: Stage) -> Iterator[None]:
        """A stage, from its first line to its last. One that fails stays the current one."""
        self.current = stage
        self.step = self.of = self.tokens_per_second = self.eta_seconds = None
        log.info("stage", stage=stage)
        began = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - began, 3)
        log.info("stage done", stage=stage, seconds=self.seconds[stage])
