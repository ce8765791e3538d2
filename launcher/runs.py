"""What the store holds of a run."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from job.contract.documents import Cancelled, Claim, Lease, Outcome, Result, Spec
from job.contract.errors import NoInputError
from job.contract.keys import RunKeys
from job.contract.model import Document, read_document
from job.storage import Stat, Storage

D = TypeVar("D", bound=Document)


@dataclass(frozen=True)
class RunDocuments:
    """A run's documents; None for each that is not there."""

    run_id: str
    spec: Spec | None
    lease: Lease | None
    lease_age: timedelta | None
    """Since the newest sign of life: the lease, or the newest claim, which is an attempt's first. By the store's clock."""
    claim: Claim | None
    """The newest attempt's."""
    outcome: Outcome | None
    """The newest attempt's."""
    result: Result | None
    cancelled: Cancelled | None
    has_config: bool = False
    """Whether its config is there without a spec: its first attempt, which is to freeze it, has not begun."""
    root: str = ""
    """Where runs are kept."""

    @property
    def exists(self) -> bool:
        """Whether there is such a run: launched, or begun by an attempt."""
        return bool(self.spec or self.has_config or self.claim or self.lease or self.result)


def read_run(storage: Storage, run_id: str) -> RunDocuments:
    """All documents of a run, of its attempts the newest one's.

    Read in the order in which their absence can be trusted: the lease before the claims, so that it is of none newer;
    and the result last, so that an attempt which has told its outcome, or a Job that was read before, is never taken
    for one that left no result.

    Args:
        storage: the root of runs.
        run_id: whose.

    Raises:
        DataError: a document is none that this version reads; names its key.
    """
    keys = RunKeys(run_id)
    spec = _read(storage, Spec, keys.spec)
    cancelled = _read(storage, Cancelled, keys.cancelled)
    lease = _read(storage, Lease, keys.lease)
    claim = _newest_claim(storage, keys)
    outcome = _read(storage, Outcome, keys.attempt(claim[0].attempt).outcome) if claim else None
    result = _read(storage, Result, keys.result)
    ages = [found[1].age for found in (lease, claim) if found]
    return RunDocuments(
        run_id=run_id,
        spec=_document(spec),
        lease=_document(lease),
        lease_age=min((age for age in ages if age is not None), default=None),
        claim=_document(claim),
        outcome=_document(outcome),
        result=_document(result),
        cancelled=_document(cancelled),
        has_config=spec is None and storage.head(keys.config) is not None,
        root=storage.uri,
    )


def no_such_run(run_id: str, root: str) -> NoInputError:
    """The error that tells of a run which neither the root nor the cluster knows."""
    return NoInputError(
        f"there is no run {run_id} under {root}", "A run has an id such as demo-0123456789: `finetune list` names them."
    )


def newest_attempt(storage: Storage, run_id: str) -> int:
    """The number of the newest attempt that was claimed, 0 before the first."""
    claim = _newest_claim(storage, RunKeys(run_id))
    return claim[0].attempt if claim else 0


def _newest_claim(storage: Storage, keys: RunKeys) -> tuple[Claim, Stat] | None:
    """The claim with the highest number. Numbers have no gaps."""
    number, newest = 0, None
    while found := _read(storage, Claim, keys.attempt(number + 1).claim):
        number, newest = number + 1, found
    return newest


def _read(storage: Storage, kind: type[D], key: str) -> tuple[D, Stat] | None:
    found = storage.get(key)
    return (read_document(kind, found[0], f"{storage.uri}/{key}"), found[1]) if found else None


def _document(found: tuple[D, Stat] | None) -> D | None:
    return found[0] if found else None
