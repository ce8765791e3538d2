"""When a Job has had enough attempts: a table, what holds for every history, and real documents in a directory."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.attempt import claim
from job.contract.documents import Claim, Outcome
from job.contract.errors import BugError
from job.contract.exits import exit_name
from job.contract.model import canonical_bytes
from job.ledger import Past, bounds
from job.run import Run
from job.settings import Settings
from tests.supervisor.test_attempt import now

Of = Callable[[str], Settings]
MOST, IDLE = 20, 3


def outcome(code: int) -> Outcome:
    return Outcome(code=code, name=exit_name(code), stage="train", message=f"ended with {code}")


def history(words: str, job_uid: str = "u1") -> list[Past]:
    """One attempt a word: its code or `silent`, `@` and the step of its checkpoint, `+` for an adapter, `*`: another Job's."""
    attempts = []
    for number, word in enumerate(words.split(), 1):
        code, _, step = word.strip("+*").partition("@")
        attempts.append(
            Past(
                number=number,
                job_uid="u0" if "*" in word else job_uid,
                outcome=None if code == "silent" else outcome(int(code)),
                published="+" in word,
                step=int(step or 0),
            )
        )
    return attempts


GO_ON = {
    "the first": "",
    "two failures": "71 71",
    "evictions only": "75 " * 19,
    "silent deaths only": "silent " * 19,
    "told to stop, and not saved in time": "143 143 143 143",
    "overtaken": "76 76 76 76",
    "each gets further": "71@10 71@20 71@30 71@40",
    "one in between gets further": "71 71 75@10 71 71",
    "another Job's": "71* 71* 71* 71 71",
    "an adapter is progress": "71 71 71+ 74 74",
    "an evicted one that got further": "71 71 silent@5 71",
    "a checkpoint that did not hold is trained anew": "71@100 71@50 71@50 71@70",
}
ENOUGH = {
    "three failures": "71 71 71",
    "evictions count to all": "75 " * 20,
    "silent deaths count to all": "silent " * 20,
    "progress counts to all": " ".join(f"71@{step}" for step in range(1, 21)),
    "evictions between failures": "71 75 silent 71 143 75 137",
    "no further than the one before": "71@10 71@10 71 75 74",
    "an adapter, and then three": "71+ 71 137 74",
    "always from the first step": "75@50 69@50 71@50 74@50",
    "after another Job's progress": "71@10* 71 71 71",
}


@pytest.mark.parametrize("words", GO_ON.values(), ids=GO_ON)
def test_a_job_goes_on(words: str) -> None:
    assert bounds(history(words), "u1", MOST, IDLE) is None


@pytest.mark.parametrize("words", ENOUGH.values(), ids=ENOUGH)
def test_a_job_has_had_enough(words: str) -> None:
    assert bounds(history(words), "u1", MOST, IDLE)


def test_the_reason_names_the_attempts_and_their_ends() -> None:
    assert bounds(history("75@9 71 silent 137 74"), "u1", MOST, IDLE) == (
        "3 attempts of this Job ended by themselves without progress: 2 with 71 DEVICE (train), "
        "4 with 137 KILLED (train), 5 with 74 IO (train). The last one said: ended with 74"
    )


ATTEMPTS = st.lists(
    st.builds(
        Past,
        number=st.just(1),
        job_uid=st.sampled_from(["u0", "u1"]),
        outcome=st.none() | st.sampled_from([69, 71, 74, 75, 76, 137, 143]).map(outcome),
        published=st.booleans(),
        step=st.integers(0, 3),
    ),
    max_size=30,
)


@given(ATTEMPTS)
def test_all_attempts_of_a_job_are_bounded_and_no_other_jobs_are(attempts: list[Past]) -> None:
    ours = sum(past.job_uid == "u1" for past in attempts)
    why = bounds(attempts, "u1", MOST, IDLE)
    assert why or ours < MOST
    assert not why or ours >= IDLE
    assert bounds(attempts, "u2", MOST, IDLE) is None


@given(ATTEMPTS, st.sampled_from([75, 76, 143, None]), st.integers(0, 30))
def test_an_end_from_outside_without_progress_changes_no_judgement(
    attempts: list[Past], code: int | None, at: int
) -> None:
    evicted = Past(1, "u1", None if code is None else outcome(code), published=False, step=0)
    more = [*attempts[:at], evicted, *attempts[at:]]
    assert bounds(more, "u1", 100, IDLE) == bounds(attempts, "u1", 100, IDLE)


@given(ATTEMPTS)
def test_a_newer_checkpoint_starts_the_count_anew(attempts: list[Past]) -> None:
    further = Past(1, "u1", outcome(71), published=True, step=4)
    assert bounds([*attempts, further], "u1", 100, IDLE) is None


def plant(run: Run, number: int, code: int | None, job_uid: str = "u1", step: int = 0) -> None:
    """What an attempt has left."""
    keys = run.keys.attempt(number)
    owned = Claim(attempt=number, spec_sha256=run.spec_sha256, owner="o", job_uid=job_uid)
    run.storage.put(keys.claim, canonical_bytes(owned))
    if code is not None:
        run.storage.put(keys.outcome, canonical_bytes(outcome(code)))
    if step:
        run.storage.put(keys.complete(step), b"whole")


def test_a_job_that_has_had_enough_claims_nothing(run: Run, settings_of: Of) -> None:
    for number in (1, 2, 3):
        plant(run, number, 71)
    with pytest.raises(BugError, match="3 attempts of this Job") as raised:
        claim(run, settings_of("u1"), now())
    assert raised.value.code == 70
    assert "finetune launch --resume" in raised.value.resolution
    assert run.storage.head(run.keys.attempt(4).claim) is None


def test_another_job_has_a_count_of_its_own(run: Run, settings_of: Of) -> None:
    for number in (1, 2, 3):
        plant(run, number, 71)
    assert claim(run, settings_of("u2"), now()) == 4


def test_a_person_may_try_for_ever(run: Run, settings: Settings) -> None:
    for number in range(1, 31):
        plant(run, number, 71)
    assert claim(run, settings, now()) == 31


def test_a_checkpoint_in_the_store_is_progress(run: Run, settings_of: Of) -> None:
    plant(run, 1, 71)
    plant(run, 2, 71)
    plant(run, 3, 71, step=7)
    assert claim(run, settings_of("u1"), now()) == 4


def test_evictions_are_bounded_too(run: Run, settings_of: Of) -> None:
    for number in range(1, 20):
        plant(run, number, 75)
    assert claim(run, settings_of("u1"), now()) == 20
    plant(run, 20, None)
    with pytest.raises(BugError, match=r"20 attempts of this Job did not finish the run: 1 with 75 .*, 20 silently"):
        claim(run, settings_of("u1"), now())
