"""One pod's try at a run: its claim, its heartbeat, its log and how it ended."""

import gzip
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import structlog

from job.contract.documents import Claim, Lease, Outcome
from job.contract.errors import FencedError, JobError, TakenError
from job.contract.keys import AttemptKeys
from job.contract.model import canonical_bytes, read_document
from job.ledger import assert_bounded
from job.logs import LogBuffer
from job.outcome import outcome_of
from job.run import Run
from job.settings import ENDING_SECONDS, Settings
from job.stages import Stages
from job.storage import Stat, Storage
from job.storage.opening import open_storage

log = structlog.get_logger()


def claim(run: Run, settings: Settings, now: datetime) -> int | None:
    """Takes the next attempt number. Whoever put the claim owns the number.

    An attempt that neither told its outcome nor missed its heartbeat is alive. A newer pod of our own Job takes over
    all the same, since Kubernetes has then given the older one up.

    Args:
        run: whose attempt.
        settings: who claims, and after how long a silence an attempt counts as dead.
        now: what the store's clock says as this begins.

    Returns:
        The number; None when the attempt that was waited for has come to the run's result.

    Raises:
        TakenError: while another Job's attempt lives.
        BugError: our Job has had enough attempts.
    """
    clock = _going_on(now)
    ours = Claim(attempt=1, spec_sha256=run.spec_sha256, owner=uuid.uuid4().hex, **asdict(settings.site))
    while True:
        number = _newest(run, ours.attempt)
        if number:
            _wait_until_over(run, number, settings, clock)
            if run.storage.head(run.keys.result):
                return None
            assert_bounded(run, number, settings)
        ours = ours.model_copy(update={"attempt": number + 1})
        if run.storage.put_if_absent(run.keys.attempt(number + 1).claim, canonical_bytes(ours)):
            return number + 1


def _going_on(now: datetime) -> Callable[[], datetime]:
    """A clock that says `now`, and from there on goes by what passes here."""
    began = time.monotonic()
    return lambda: now + timedelta(seconds=time.monotonic() - began)


def _newest(run: Run, start: int = 1) -> int:
    """The newest claimed attempt number, 0 when there is none. Numbers have no gaps."""
    number = start - 1
    while run.storage.head(run.keys.attempt(number + 1).claim):
        number += 1
    return number


def _wait_until_over(run: Run, number: int, settings: Settings, clock: Callable[[], datetime]) -> None:
    """Returns when attempt `number` is over: it told its outcome, or its heartbeat has gone stale by the store's clock."""
    keys = run.keys.attempt(number)
    beat = _last_beat(run, keys)
    stale_at = beat.last_modified + timedelta(seconds=settings.stale_seconds)
    while run.storage.head(keys.outcome) is None and clock() < stale_at:
        time.sleep(min(1.0, settings.stale_seconds / 10))
        newest = _last_beat(run, keys)
        if newest.etag != beat.etag:
            _refuse_unless_ours(run, keys, number, settings)
            return


def _last_beat(run: Run, keys: AttemptKeys) -> Stat:
    """The newest sign of life. A claim is the first one: until its attempt beats, the lease is an older attempt's."""
    beats = [stat for key in (run.keys.lease, keys.claim) if (stat := run.storage.head(key))]
    if not beats:
        raise TakenError(f"{run.uri}: the claim of an attempt has gone", "Ask who deletes objects in this bucket.")
    return max(beats, key=lambda stat: stat.last_modified)


def _refuse_unless_ours(run: Run, keys: AttemptKeys, number: int, settings: Settings) -> None:
    found = run.storage.get(keys.claim)
    holder = read_document(Claim, found[0], keys.claim) if found else None
    if holder is None or (holder.job_uid and holder.job_uid == settings.site.job_uid):
        return
    who = ", ".join(
        f"{name} {value}" for name, value in holder.model_dump(include={"site", "namespace", "pod"}).items() if value
    )
    raise TakenError(
        f"attempt {number} of {run.run_id} is alive{f': {who}' if who else ''}",
        "Wait for it, or cancel it first.",
    )


class Attempt:
    """A claimed attempt, from its first heartbeat to its outcome.

    Args:
        run: whose attempt.
        number: the number that was claimed.
        stages: how far it is; read for each heartbeat.
        buffer: the log lines that no chunk holds yet.
        heartbeat_seconds: between two heartbeats.
        overtaken: called by the heartbeat's thread, once, when a newer attempt has taken over.
        ending_seconds: how long each of its last waits may take.
    """

    def __init__(
        self,
        run: Run,
        number: int,
        stages: Stages,
        buffer: LogBuffer,
        heartbeat_seconds: float,
        overtaken: Callable[[FencedError], None],
        ending_seconds: float = ENDING_SECONDS,
    ) -> None:
        self.run, self.number, self.keys = run, number, run.keys.attempt(number)
        self._overtaken, self._ending_seconds = overtaken, ending_seconds
        self._stages, self._buffer, self._interval = stages, buffer, heartbeat_seconds
        self._lease_etag: str | None = None
        self._chunk = 0
        self._unsent = b""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_over, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        structlog.contextvars.bind_contextvars(run_id=self.run.run_id, attempt=self.number)
        log.info("attempt", uri=f"{self.run.storage.uri}/{self.keys.prefix}")
        self._try_to(self._beat)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(self._ending_seconds)
        try:
            self._try_to_tell(outcome_of(error, self._stages))
        finally:
            structlog.contextvars.unbind_contextvars("run_id", "attempt")

    def tell(self, outcome: Outcome, seconds: float) -> None:
        """Tells the store how it ended, if it takes that within so many seconds."""
        teller = threading.Thread(target=self._try_to_tell, args=(outcome,), daemon=True)
        teller.start()
        teller.join(seconds)

    def assert_newest(self) -> None:
        """Raises `FencedError` when a newer attempt has taken over."""
        if self.run.storage.head(self.run.keys.attempt(self.number + 1).claim):
            raise FencedError(
                f"attempt {self.number + 1} of {self.run.run_id} has taken over from attempt {self.number}"
            )

    def _beat_until_over(self) -> None:
        while not self._over.wait(self._interval):
            self._try_to(self._beat_if_newest)

    def _try_to(self, beat: Callable[[], None]) -> None:
        """The next beat tries again, and a store that stays away ends the run elsewhere."""
        try:
            beat()
        except Exception as error:
            log.warning("a heartbeat was missed", message=str(error))

    def _beat_if_newest(self) -> None:
        try:
            self.assert_newest()
        except FencedError as error:
            if not self._over.is_set():
                self._over.set()
                self._overtaken(error)
            return
        self._beat()

    def _beat(self) -> None:
        lease = Lease(
            attempt=self.number,
            heartbeat_at=datetime.now(UTC),
            stage=self._stages.current,
            step=self._stages.step,
            of=self._stages.of,
            loss=self._stages.loss,
            tokens_per_second=self._stages.tokens_per_second,
            eta_seconds=self._stages.eta_seconds,
        )
        self._put_lease(lease)
        self._put_log(self.run.storage)

    def _put_lease(self, lease: Lease) -> None:
        """Replaces the lease that we put, or one of an older attempt; a newer attempt's stays."""
        key, body, storage = self.run.keys.lease, canonical_bytes(lease), self.run.storage
        stat = storage.put_if_match(key, body, self._lease_etag) if self._lease_etag else None
        while stat is None:
            found = storage.get(key)
            if found and read_document(Lease, found[0], key).attempt > self.number:
                return
            stat = storage.put_if_match(key, body, found[1].etag) if found else storage.put_if_absent(key, body)
        self._lease_etag = stat.etag

    def _put_log(self, storage: Storage) -> None:
        """Sends the lines since the last chunk; lines that could not be sent go with the next."""
        self._unsent += self._buffer.take()
        if self._unsent:
            storage.put(self.keys.log(self._chunk + 1), gzip.compress(self._unsent))
            self._chunk, self._unsent = self._chunk + 1, b""

    def _try_to_tell(self, outcome: Outcome) -> None:
        """Tells the outcome in a hurry: the termination message is still to be told."""
        log.info("outcome", **outcome.model_dump(exclude={"schema_version"}))
        try:
            hurried = open_storage(self.run.storage.uri, self._ending_seconds)
            self._put_log(hurried)
            hurried.put_if_absent(self.keys.outcome, canonical_bytes(outcome))
        except JobError as failure:  # the ending itself is what must be told
            log.warning("the outcome was not kept", message=failure.message)
