"""Checkpoints to the store, in the background. Training never waits for the store."""

import contextvars
import os
import shutil
import threading
import time
from pathlib import Path

import structlog

from job.attempt import Attempt
from job.contract.disk import CHECKPOINT_BYTES
from job.contract.documents import Checkpoint, Fingerprint
from job.contract.errors import InterruptedRun, JobError
from job.contract.events import Loaded, Saved
from job.contract.model import canonical_bytes
from job.publishing import upload_verified
from job.run import Run
from job.storage.opening import open_storage

log = structlog.get_logger()

_SAMPLE_BYTES = 32 << 20  # what is sent to measure the rate: parts of it go side by side, as those of a checkpoint do
_SAMPLE_BUDGET_SECONDS = 10


class Uploads:
    """One upload at a time; of those that wait, the newest alone.

    Args:
        attempt: whose checkpoints.
        fingerprint: what they can be gone on from with.
        directory: on the disk that training saves on; checkpoints are moved there, so that training leaves them alone.
    """

    def __init__(self, attempt: Attempt, fingerprint: Fingerprint, directory: Path) -> None:
        self._attempt, self._fingerprint, self._directory = attempt, fingerprint, directory
        self._changed = threading.Condition()
        self._waiting: Saved | None = None
        self._is_sending = self._is_hurried = self._is_over = False
        self._added = self._kept = 0
        # A copy of the context, so that its log lines tell run and attempt as all others do.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._send_until_over,), name="checkpoints", daemon=True)
        self._thread.start()

    def add(self, saved: Saved) -> None:
        """Takes a checkpoint over; one that still waits gives way to it."""
        taken = self._directory / Path(saved.directory).name
        try:
            Path(saved.directory).rename(taken)
        except FileNotFoundError:  # training has replaced it by a newer one, which it will tell
            return
        with self._changed:
            replaced, self._waiting = self._waiting, saved.model_copy(update={"directory": str(taken)})
            self._added = saved.step
            self._changed.notify_all()
        if replaced:
            shutil.rmtree(replaced.directory)

    def finish(self, seconds: float) -> bool:
        """Waits for the newest checkpoint, for which an older one that is on its way gives up.

        Returns:
            Whether the newest is in the store, verified; also when there was none.
        """
        with self._changed:
            self._is_hurried = True
            self._changed.wait_for(lambda: not self._is_sending and self._waiting is None, seconds)
            return self._kept == self._added

    def close(self) -> None:
        """Sends nothing more. What is on its way is not waited for."""
        with self._changed:
            self._is_over, self._waiting = True, None
            self._changed.notify_all()

    def _send_until_over(self) -> None:
        while saved := self._next():
            try:
                self._send(saved)
                self._kept = saved.step
            except Exception as error:  # the next one may do better; the run goes on without
                why = error.message if isinstance(error, JobError) else repr(error)
                log.warning("a checkpoint was not kept", step=saved.step, why=why)
            finally:
                shutil.rmtree(saved.directory, ignore_errors=True)
                with self._changed:
                    self._is_sending = False
                    self._changed.notify_all()

    def _next(self) -> Saved | None:
        """The checkpoint that waits, once there is one; None when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._is_over)
            saved, self._waiting = self._waiting, None
            self._is_sending = saved is not None
            return saved

    def _send(self, saved: Saved) -> None:
        storage, keys = self._attempt.run.storage, self._attempt.keys
        began = time.monotonic()
        files = upload_verified(Path(saved.directory), storage, keys.checkpoint(saved.step), self._give_way)
        complete = Checkpoint(step=saved.step, fingerprint=self._fingerprint, files=files)
        storage.put(keys.complete(saved.step), canonical_bytes(complete))
        size, seconds = sum(file.size for file in files), round(time.monotonic() - began, 3)
        log.info("checkpoint kept", step=saved.step, bytes=size, seconds=seconds)

    def _give_way(self, _: int) -> None:
        """Called as bytes move: the end of the run has time for one upload only."""
        if self._is_hurried and self._waiting:
            raise InterruptedRun("a newer one is to be kept while there is time")


def warn_if_slow(run: Run, loaded: Loaded, directory: Path, grace_seconds: float) -> None:
    """Measures the upload rate in the background, and warns of a store too slow for a checkpoint in the grace period.

    Args:
        run: under whose probes a sample is put, which the next start replaces.
        loaded: the model, whose trained parameters decide a checkpoint's size.
        directory: where the sample is made.
        grace_seconds: what there is between SIGTERM and the end.
    """
    context = contextvars.copy_context()
    arguments = (_warn_if_slow, run, CHECKPOINT_BYTES * loaded.trainable_parameters, directory, grace_seconds)
    threading.Thread(target=context.run, args=arguments, name="upload rate", daemon=True).start()


def _warn_if_slow(run: Run, size: int, directory: Path, grace_seconds: float) -> None:
    sample = directory / "upload-rate"
    try:
        sample.write_bytes(os.urandom(min(size, _SAMPLE_BYTES)))
        storage = open_storage(run.storage.uri, _SAMPLE_BUDGET_SECONDS)
        began = time.monotonic()
        sent = storage.upload(sample, run.keys.canary("upload-rate"))
        rate = sent.stat.size / (time.monotonic() - began)
        sample.unlink()
    except (JobError, OSError) as error:
        log.warning("the upload rate was not measured", why=str(error))
        return
    facts = {"mb_per_second": round(rate / 1e6, 3), "checkpoint_bytes": size, "seconds": round(size / rate, 1)}
    if size / rate > grace_seconds:
        log.warning(
            "a checkpoint takes longer than the grace period: told to stop, the run will lose the steps since the last",
            **facts,
            grace_seconds=grace_seconds,
            resolution="Raise terminationGracePeriodSeconds in the Job template, and FINETUNE_GRACE_SECONDS with it.",
        )
    else:
        log.info("upload rate", **facts)
