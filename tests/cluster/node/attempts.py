"""The attempts of a run, as the store tells of them once it has ended."""

import gzip
import json
from dataclasses import dataclass

from job.contract.documents import Outcome, Result
from job.contract.keys import RunKeys
from job.contract.model import read_document
from job.storage import Storage
from launcher.kube import Json


@dataclass(frozen=True)
class Attempt:
    """One of them."""

    code: int | None
    """None: it did not live to tell."""
    kept: list[int]
    """The steps whose checkpoints are whole in the store."""
    log: list[Json]

    def told(self, event: str) -> list[int]:
        """The step of each log line of that name."""
        return [line["step"] for line in self.log if line["event"] == event]


def attempts(storage: Storage, run: str) -> list[Attempt]:
    """All of a run, the first one first."""
    found: list[Attempt] = []
    while storage.head(RunKeys(run).attempt(len(found) + 1).claim):
        found.append(_attempt(storage, run, len(found) + 1))
    return found


def kept(storage: Storage, run: str, number: int = 1) -> list[int]:
    """The steps whose checkpoints of an attempt are whole in the store."""
    keys = RunKeys(run).attempt(number)
    steps = [keys.completed(stat.key) for stat in storage.list(keys.checkpoints)]
    return sorted(step for step in steps if step is not None)


def _attempt(storage: Storage, run: str, number: int) -> Attempt:
    keys = RunKeys(run).attempt(number)
    outcome = storage.get(keys.outcome)
    chunks = [storage.get(stat.key) for stat in storage.list(f"{keys.prefix}log/")]
    lines = [line for chunk in chunks if chunk for line in gzip.decompress(chunk[0]).splitlines()]
    return Attempt(
        code=read_document(Outcome, outcome[0], keys.outcome).code if outcome else None,
        kept=kept(storage, run, number),
        log=[json.loads(line) for line in lines],
    )


def adapter(storage: Storage, run: str) -> str:
    """The SHA-256 of the adapter's weights, as the run's result names them."""
    found = storage.get(RunKeys(run).result)
    assert found, "there is no result"
    result = read_document(Result, found[0], RunKeys(run).result)
    [weights] = [file for file in result.artifacts.lora if file.key.endswith("adapter_model.safetensors")]
    return weights.sha256


def assert_whole(storage: Storage, run: str, uninterrupted: str) -> list[Attempt]:
    """One result, whose adapter is that of a run that nothing interrupted, and each attempt went on from a checkpoint.

    Args:
        storage: the root of runs.
        run: which has ended.
        uninterrupted: what `adapter` gives for a run of the same training.

    Returns:
        Its attempts.
    """
    found = attempts(storage, run)
    assert adapter(storage, run) == uninterrupted
    published = [number for number in range(1, len(found) + 1) if storage.head(RunKeys(run).attempt(number).published)]
    assert len(published) == 1, "training ended once"
    for number, attempt in enumerate(found[1 : published[0]], 1):
        [resumed] = attempt.told("resumed") or [0]
        assert resumed in (0, *(step for before in found[:number] for step in before.kept))
        assert attempt.told("step")[:1] in ([], [resumed + 1]), "no step is taken twice, and none left out"
    return found
