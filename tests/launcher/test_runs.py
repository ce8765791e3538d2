"""What is read of a run, as the job itself writes it, in a directory and in S3."""

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.attempt import Attempt, claim
from job.contract.documents import (
    Cancelled,
    Claim,
    Lease,
    Outcome,
)
from job.contract.errors import DataError
from job.contract.keys import index_key, indexed
from job.contract.model import canonical_bytes
from job.logs import LogBuffer
from job.run import Run, put_spec
from job.settings import Settings, read_settings
from job.stages import Stages
from job.storage import Storage
from launcher.runs import RunDocuments, newest_attempt, read_run
from launcher.status import Phase, read_status
from tests.attempts import never_overtaken
from tests.launcher.runs import publish, run_of


@pytest.fixture
def run(storage: Storage) -> Run:
    return run_of(storage, "bot-0123456789")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a pod of the Job `u1`, in a hurry."""
    flags = ["--config", "c.yaml", "--runs", "unused", "--scratch", str(tmp_path)]
    return read_settings(flags, {"FINETUNE_STALE_SECONDS": "0.1", "FINETUNE_JOB_UID": "u1", "FINETUNE_POD": "p1"})


def attempt(run: Run, number: int) -> Attempt:
    return Attempt(run, number, Stages(current="train", step=3, of=9), LogBuffer(), 30, never_overtaken)


def now() -> datetime:
    return datetime.now(UTC)


def test_a_run_that_is_not_there_has_no_documents(run: Run) -> None:
    found = read_run(run.storage, run.run_id)
    assert {name for name, value in vars(found).items() if value} == {"run_id", "root"}
    assert not found.exists
    assert newest_attempt(run.storage, run.run_id) == 0
    assert read_status(None, None, found).phase == Phase.UNKNOWN


def test_a_run_is_followed_from_its_first_claim_to_its_result(run: Run, settings: Settings) -> None:
    def seen() -> tuple[RunDocuments, Phase]:
        found = read_run(run.storage, run.run_id)
        return found, read_status(None, None, found).phase

    put_spec(run, b"config")
    assert claim(run, settings, now()) == 1
    found, phase = seen()
    assert found.spec == run.spec
    assert found.claim
    assert (found.claim.attempt, found.claim.job_uid, found.claim.pod) == (1, "u1", "p1")
    assert (found.lease, found.outcome, phase) == (None, None, Phase.RUNNING)

    with suppress(DataError), attempt(run, 1):
        found, phase = seen()
        raise DataError("row 7 is bad", "mend it")
    assert found.lease
    assert (found.lease.attempt, found.lease.step, found.lease.of, phase) == (1, 3, 9, Phase.RUNNING)
    found, phase = seen()
    assert found.outcome == Outcome(
        code=65, name="DATA", stage="train", step=3, message="row 7 is bad", resolution="mend it"
    )
    assert phase == Phase.FAILED

    assert claim(run, settings, now()) == 2
    found, phase = seen()
    assert found.claim
    assert (found.claim.attempt, found.outcome, phase) == (2, None, Phase.RUNNING)
    assert newest_attempt(run.storage, run.run_id) == 2

    result = publish(run)
    found, phase = seen()
    assert (found.result, phase) == (result, Phase.SUCCEEDED)


def test_the_newest_of_many_attempts_is_found(run: Run, settings: Settings) -> None:
    later = now() + timedelta(hours=1)  # each has long been silent
    for number in range(1, 13):
        assert claim(run, settings, later) == number
    run.storage.put(run.keys.attempt(9).outcome, b"not read")
    found = read_run(run.storage, run.run_id)
    assert found.claim
    assert (found.claim.attempt, found.outcome) == (12, None)


def test_the_age_is_that_of_the_last_sign_of_life(run: Run) -> None:
    """By the store's clock: tests/launcher/test_clocks.py."""
    wrong_clock = now() - timedelta(days=1)
    beat = Lease(attempt=1, heartbeat_at=wrong_clock, stage="train")
    run.storage.put(run.keys.lease, canonical_bytes(beat))
    time.sleep(2.1)  # S3 tells whole seconds
    old = read_run(run.storage, run.run_id).lease_age
    assert old is not None
    assert timedelta(seconds=1) <= old < timedelta(minutes=1)
    claimed = Claim(attempt=1, spec_sha256="0" * 64, owner="o")
    for key, sign in ((run.keys.attempt(1).claim, claimed), (run.keys.lease, beat)):
        time.sleep(2.1)
        before = read_run(run.storage, run.run_id).lease_age
        run.storage.put(key, canonical_bytes(sign))
        after = read_run(run.storage, run.run_id).lease_age
        assert before is not None
        assert after is not None
        assert after < before


def test_a_run_whose_inputs_its_first_attempt_is_to_freeze_exists(run: Run, settings: Settings) -> None:
    run.storage.put(run.keys.config, b"config")
    found = read_run(run.storage, run.run_id)
    assert (found.spec, found.has_config, found.exists) == (None, True, True)
    status = read_status(None, None, found)
    assert (status.phase, status.terminal, status.reason) == (Phase.PENDING, False, "NoJobHere")
    put_spec(run, b"config")
    found = read_run(run.storage, run.run_id)
    assert (found.has_config, found.exists) == (False, True)
    assert read_status(None, None, found) == status, "frozen by a launch, it is told the same way"
    assert claim(run, settings, now() + timedelta(hours=1)) == 1


def test_a_cancellation_is_read(run: Run) -> None:
    cancelled = Cancelled(by="ada", at=now(), job_uid="u1", attempt=1)
    run.storage.put(f"runs/{run.run_id}/cancelled.json", canonical_bytes(cancelled))
    found = read_run(run.storage, run.run_id)
    assert found.cancelled == cancelled
    assert read_status(None, None, found).phase == Phase.CANCELLED


@pytest.mark.parametrize("name", ["spec", "cancelled", "lease", "result", "claim", "outcome"])
@pytest.mark.parametrize("body", [b"", b"{", b'{"schema_version": 2}'])
def test_a_document_that_does_not_parse_is_named(run: Run, settings: Settings, name: str, body: bytes) -> None:
    claim(run, settings, now())
    key = getattr(run.keys if name in ("spec", "cancelled", "lease", "result") else run.keys.attempt(1), name)
    run.storage.put(key, body)
    with pytest.raises(DataError) as raised:
        read_run(run.storage, run.run_id)
    assert f"{run.storage.uri}/{key} is not a {name.capitalize()}" in raised.value.message


@given(
    st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)),
    st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
)
def test_an_index_key_is_read_back_as_it_was_made(name: str, at: datetime, run_id: str) -> None:
    key = index_key(name, f"{at:%Y%m%dT%H%M%SZ}", run_id)
    assert indexed(key) == (name, at.replace(microsecond=0, tzinfo=UTC), run_id)
