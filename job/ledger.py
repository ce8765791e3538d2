"""The attempts of a run, and when there have been enough: a bound for what Kubernetes leaves without one.

The Job's backoffLimit counts neither evictions nor the code 75, so a run that never gets anywhere between two of them would
go on for ever. Each Job has a count of its own. A start outside a cluster is a person's, and has none.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from job.contract.documents import Claim, Outcome
from job.contract.errors import BugError, DataError
from job.contract.exits import Exit
from job.contract.model import Document, read_document
from job.run import Run
from job.settings import Settings

# Told to stop, with and without a checkpoint that was kept in time, or overtaken by a newer pod.
_FROM_OUTSIDE = frozenset({Exit.INTERRUPTED, Exit.FENCED, 128 + signal.SIGTERM})

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class Past:
    """An attempt that is over, as the store tells of it."""

    number: int
    job_uid: str | None
    outcome: Outcome | None
    """None: it was killed before it could tell."""
    published: bool
    """Whether its adapter is whole in the store."""
    step: int
    """Of its furthest complete checkpoint; 0 when there is none."""

    @property
    def ended_by_itself(self) -> bool:
        """Whether it told of an ending that nobody outside asked for.

        A silent end counts to all attempts only. The store cannot tell memory that ran out from a node that was lost;
        Kubernetes can, and counts the first towards the Job's backoffLimit.
        """
        return self.outcome is not None and self.outcome.code not in _FROM_OUTSIDE

    def __str__(self) -> str:
        if self.outcome is None:
            return f"{self.number} silently"
        return f"{self.number} with {self.outcome.code} {self.outcome.name} ({self.outcome.stage})"


def assert_bounded(run: Run, newest: int, settings: Settings) -> None:
    """Refuses a further attempt of a Job that has had enough of them.

    Args:
        run: whose attempts.
        newest: the number of the newest one, 0 when there is none.
        settings: whose Job it is, and how many attempts it may have.

    Raises:
        BugError: naming the attempts, and what each ended with.
    """
    if settings.site.job_uid is None:
        return
    history = [_past(run, number) for number in range(1, newest + 1)]
    if why := bounds(history, settings.site.job_uid, settings.max_attempts, settings.max_idle_attempts):
        raise BugError(
            why,
            "See `finetune why` and `finetune logs`, and mend what ended them. `finetune launch --resume` then makes a "
            "new Job with a new count, which goes on from what there is.",
        )


def bounds(history: Sequence[Past], job_uid: str, most: int, most_idle: int) -> str | None:
    """Why a Job may have no further attempt; None while it may.

    An attempt makes progress when it publishes the adapter, or keeps a checkpoint that is further than what the attempt
    before it had.

    Args:
        history: every attempt of the run, from the first.
        job_uid: whose attempts count.
        most: attempts of every kind.
        most_idle: attempts that ended by themselves without progress since the last that made some.
    """
    ours = [past for past in history if past.job_uid == job_uid]
    if len(ours) >= most:
        return f"{len(ours)} attempts of this Job did not finish the run: {_told(ours)}"
    idle: list[Past] = []
    reached = (False, 0)
    for past in history:
        own = (past.published, past.step)
        if own > reached:
            idle = []
        elif past.job_uid == job_uid and past.ended_by_itself:
            idle.append(past)
        reached = own if any(own) else reached
    if len(idle) >= most_idle:
        return f"{len(idle)} attempts of this Job ended by themselves without progress: {_told(idle)}"
    return None


def _told(attempts: Sequence[Past]) -> str:
    last = attempts[-1].outcome
    said = f". The last one said: {last.message[:500]}" if last else ""
    return ", ".join(map(str, attempts)) + said


def _past(run: Run, number: int) -> Past:
    keys = run.keys.attempt(number)
    claim = _read(run, Claim, keys.claim)
    steps = [keys.completed(stat.key) for stat in run.storage.list(keys.checkpoints)]
    return Past(
        number=number,
        job_uid=claim.job_uid if claim else None,
        outcome=_read(run, Outcome, keys.outcome),
        published=run.storage.head(keys.published) is not None,
        step=max((step for step in steps if step is not None), default=0),
    )


def _read(run: Run, model: type[D], key: str) -> D | None:
    """A document, None where there is none or only one that another version wrote, which no attempt of our Job is of."""
    found = run.storage.get(key)
    try:
        return read_document(model, found[0], key) if found else None
    except DataError:
        return None
