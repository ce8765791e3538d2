"""The verdict on a run: all combinations that matter, what holds for every one, and what it tells."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.contract.documents import Cancelled, Claim, Lease, Outcome
from job.contract.model import canonical_bytes
from launcher.manifest import ENDED_BECAUSE
from launcher.runs import RunDocuments
from launcher.status import Phase, RunStatus, ended_by_store, read_status
from tests.results import SUMMARY, result

Json = dict[str, Any]

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO, JUST_NOW = "2026-03-01T09:00:00Z", "2026-03-01T11:59:50Z"
RUN = "bot-0123456789"

RESULT = result(run_id=RUN, train=SUMMARY.model_copy(update={"steps": 60, "train_loss": 0.5}))
OUTCOME = Outcome(code=71, name="DEVICE", stage="train", step=7, message="no GPU", resolution="Drain the node.")
CANCELLED = Cancelled(by="ada", at=NOW, job_uid="ours", attempt=2)
NOTHING = RunDocuments(
    run_id=RUN, spec=None, lease=None, lease_age=None, claim=None, outcome=None, result=None, cancelled=None
)


def job(*conditions: str, **spec: object) -> Json:
    """Our Job, with conditions that are true."""
    told = [
        {"type": kind, "status": "True", "reason": f"{kind}Reason", "message": f"{kind} said"} for kind in conditions
    ]
    return {
        "metadata": {"name": RUN, "uid": "ours", "labels": {}},
        "spec": spec,
        "status": {"active": 1, "conditions": told},
    }


def pod(name: str, phase: str, state: Mapping[str, object] | None = None, created: str = LONG_AGO) -> Json:
    """A pod of it."""
    statuses = [{"name": "trainer", "state": state}] if state else []
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, "containerStatuses": statuses},
    }


def running(name: str = "first", started: str = LONG_AGO, created: str = LONG_AGO) -> Json:
    return pod(name, "Running", {"running": {"startedAt": started}}, created)


def ended(code: int, message: str = "", name: str = "first", created: str = LONG_AGO) -> Json:
    state = {"terminated": {"exitCode": code, "message": message}}
    return pod(name, "Succeeded" if code == 0 else "Failed", state, created)


def deleted(one: Json, when: str) -> Json:
    one["metadata"]["deletionTimestamp"] = when
    return one


def documents(
    age: float | None, job_uid: str | None = "ours", outcome: Outcome | None = None, pod: str | None = "first"
) -> RunDocuments:
    """One attempt, whose last sign of life is so many seconds old."""
    claim = Claim(attempt=1, spec_sha256="0" * 64, owner="o", site="paris", job_uid=job_uid, pod=pod)
    lease = Lease(attempt=1, heartbeat_at=NOW, stage="train", step=7, of=60, loss=1.5, eta_seconds=100.0)
    lease_age = timedelta(seconds=age) if age is not None else None
    return replace(NOTHING, lease=lease, lease_age=lease_age, claim=claim, outcome=outcome)


JOBS: dict[str, Json | None] = {
    "gone": None,
    "alive": job(),
    "queued": job(suspend=True),
    "deleted": deleted(job(), JUST_NOW),
    "failing": job("FailureTarget"),
    "succeeding": job("SuccessCriteriaMet"),
    "failed": job("FailureTarget", "Failed"),
    "complete": job("SuccessCriteriaMet", "Complete"),
}
PODS: dict[str, list[Json]] = {
    "none": [],
    "pending": [pod("second", "Pending")],
    "runs": [running()],
    "ended": [ended(137)],
    "lost": [deleted(running(), "2026-03-01T11:50:00Z")],
    "next pending": [ended(137), pod("second", "Pending", created=JUST_NOW)],
    "next runs": [ended(137), running("second", JUST_NOW, JUST_NOW)],
}
BEATS = {
    "never": NOTHING,
    "young": documents(5),
    "stale": documents(91),
    "over": documents(5, outcome=OUTCOME),
    "elsewhere": documents(5, "another", pod="far"),
    "before": documents(5, "another", OUTCOME, pod="far"),  # an attempt of an earlier Job
}

# A Job that lives, by its pods (rows) and the newest attempt (columns).
ALIVE = """
                never  young  stale  over  elsewhere  before
none            P      R      R      R     P          P
pending         P      R      R      R     P          P
runs            G      G      R      R     G          G
ended           R      R      R      R     R          R
lost            R      G      R      R     R          R
next pending    R      R      R      R     R          R
next runs       R      R      R      R     G          R
"""
LETTERS = {"P": Phase.PENDING, "G": Phase.RUNNING, "R": Phase.RECOVERING}
# Without a Job the store alone counts.
GONE = {
    "never": Phase.UNKNOWN,
    "young": Phase.RUNNING,
    "stale": Phase.FAILED,
    "over": Phase.FAILED,
    "elsewhere": Phase.RUNNING,
    "before": Phase.FAILED,
}
# Whatever its pods and attempts do.
DECIDED = {
    "queued": Phase.QUEUED,
    "deleted": Phase.FAILING,
    "failing": Phase.FAILING,
    "succeeding": Phase.FAILING,
    "failed": Phase.FAILED,
    "complete": Phase.FAILED,
}


def expected() -> dict[tuple[str, str, str], Phase]:
    """The phase of every combination of Job, pods and attempt, where there is no result."""
    head, *rows = ALIVE.strip().splitlines()
    table = {("gone", "none", beat): phase for beat, phase in GONE.items()}
    for row in rows:
        name, letters = row[:16].strip(), row[16:].split()
        for beat, letter in zip(head.split(), letters, strict=True):
            table["alive", name, beat] = LETTERS[letter]
            table |= {(which, name, beat): phase for which, phase in DECIDED.items()}
    # A Job that fails on a lost node waits for ever; unless what runs there still reaches the store.
    table |= {("failing", "lost", beat): Phase.FAILED for beat in ("never", "stale", "over", "before")}
    return table


CASES = [(*which, phase) for which, phase in expected().items()]


def test_the_table_is_whole() -> None:
    assert len(CASES) == len(BEATS) * ((len(JOBS) - 1) * len(PODS) + 1)


@pytest.mark.parametrize(("which", "pods", "beat", "phase"), CASES, ids=["-".join(case[:3]) for case in CASES])
def test_the_phase_of_each_combination(which: str, pods: str, beat: str, phase: Phase) -> None:
    status = read_status(JOBS[which], PODS[pods], BEATS[beat], NOW)
    assert status.phase == phase, status
    assert status.terminal == (phase in {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})


@pytest.mark.parametrize(("which", "pods", "beat", "phase"), CASES, ids=["-".join(case[:3]) for case in CASES])
def test_a_result_beside_it_is_success(which: str, pods: str, beat: str, phase: Phase) -> None:
    whole = replace(BEATS[beat], result=RESULT, cancelled=CANCELLED)
    status = read_status(JOBS[which], PODS[pods], whole, NOW)
    assert (status.phase, status.terminal, status.exit_code) == (Phase.SUCCEEDED, True, 0)
    assert (status.attempt, status.step, status.of, status.loss) == (1, 60, 60, 0.5)


def attempt(number: int, job_uid: str | None, age: float = 500) -> RunDocuments:
    """An attempt with that number, which has told its outcome unless it is young."""
    found = documents(age, job_uid, None if age < 90 else OUTCOME)
    assert found.claim
    return replace(found, claim=found.claim.model_copy(update={"attempt": number}))


LIVING, FAILED, LATER = job(), job("Failed"), {"metadata": {"uid": "later"}}


@pytest.mark.parametrize(
    ("which", "found", "cancelled", "counts"),
    [
        (None, NOTHING, CANCELLED, True),
        (LIVING, NOTHING, CANCELLED, True),
        (FAILED, attempt(2, "ours"), CANCELLED, True),
        (None, attempt(3, "ours"), CANCELLED, True),
        (LATER, NOTHING, CANCELLED, False),
        (None, attempt(3, "later"), CANCELLED, False),
        # The cancelled Job was launched again, and did not live to continue this attempt of the first.
        (None, attempt(2, "earlier"), CANCELLED, True),
        # Another cluster's goes on all the same.
        (None, attempt(2, "elsewhere", age=5), CANCELLED, False),
        # Cancelled when there was no Job any more, as after a cancel that was interrupted.
        (None, attempt(2, "ours"), CANCELLED.model_copy(update={"job_uid": None}), True),
        (None, attempt(3, None), CANCELLED.model_copy(update={"job_uid": None}), False),
        (LATER, NOTHING, CANCELLED.model_copy(update={"job_uid": None}), False),
        ({"metadata": {}}, NOTHING, CANCELLED.model_copy(update={"job_uid": None}), False),
    ],
)
def test_a_cancellation_counts_until_the_run_is_launched_again(
    which: Json | None, found: RunDocuments, cancelled: Cancelled, counts: bool
) -> None:
    status = read_status(which, [], replace(found, cancelled=cancelled), NOW)
    assert (status.phase == Phase.CANCELLED) == counts, status
    assert not counts or "ada" in status.message


def test_a_job_that_failed_says_what_its_last_attempt_told() -> None:
    status = read_status(JOBS["failed"], [ended(71)], documents(5, outcome=OUTCOME), NOW)
    assert status.reason == "FailedReason"
    assert status.message == ("its Job failed (FailedReason): it ended with 71 DEVICE in the stage train: no GPU")
    assert (status.exit_code, status.resolution, status.job_uid) == (71, "Drain the node.", "ours")
    assert (status.attempt, status.stage, status.step, status.of, status.loss) == (1, "train", 7, 60, 1.5)
    assert status.eta_seconds is None


def test_a_job_that_the_launcher_ended_says_why_before_anything_else() -> None:
    over = job("FailureTarget", "Failed")
    over["metadata"]["annotations"] = {ENDED_BECAUSE: "no pod of it ran within 60 s"}
    for pods, found in (([], NOTHING), ([ended(71)], documents(5, outcome=OUTCOME))):
        status = read_status(over, pods, found, NOW)
        assert status.message == "its Job failed (FailedReason): no pod of it ran within 60 s"


def test_an_attempt_that_ended_before_its_claim_is_known_from_its_pod_alone() -> None:
    told = Outcome(code=66, name="NO_INPUT", stage="start", message="no rows", resolution="Upload them.")
    pods = [ended(137, name="first"), ended(66, canonical_bytes(told).decode(), "second", JUST_NOW)]
    status = read_status(JOBS["failed"], pods, documents(500), NOW)
    assert (status.exit_code, status.resolution) == (66, "Upload them.")
    assert "no rows" in status.message


def test_the_outcome_of_an_earlier_job_is_not_taken_for_this_ones() -> None:
    status = read_status(JOBS["failed"], [], BEATS["before"], NOW)
    assert status.exit_code is None
    assert status.message == "its Job failed (FailedReason): Failed said"


@pytest.mark.parametrize("message", ["", "Traceback (most recent call last)", '{"level": "info"}', '{"code": 65}'])
def test_a_termination_message_that_is_no_outcome_leaves_the_exit_code(message: str) -> None:
    status = read_status(JOBS["failed"], [ended(137, message)], documents(500), NOW)
    assert status.exit_code == 137
    assert status.message.endswith("it ended with 137 KILLED")
    assert "--resume" in status.resolution


def test_a_container_that_was_killed_after_it_told_75_ended_with_137() -> None:
    told = Outcome(code=75, name="INTERRUPTED", stage="train", message="told to stop")
    status = read_status(LIVING, [ended(137, canonical_bytes(told).decode())], documents(5), NOW)
    assert (status.phase, status.exit_code) == (Phase.RECOVERING, 137)


def test_a_pod_that_the_kubelet_refused_has_no_container_and_is_recovered_from() -> None:
    status = read_status(LIVING, [pod("first", "Failed")], NOTHING, NOW)
    assert (status.phase, status.exit_code) == (Phase.RECOVERING, None)


def test_a_sidecar_that_runs_on_does_not_hide_that_the_trainer_ended() -> None:
    lingering = ended(137)
    lingering["status"]["phase"] = "Running"
    lingering["status"]["containerStatuses"].insert(0, {"name": "proxy", "state": {"running": {}}})
    assert read_status(LIVING, [lingering], documents(5), NOW).phase == Phase.RECOVERING


def test_a_running_attempt_tells_how_far_it_is() -> None:
    status = read_status(LIVING, [running()], documents(5), NOW)
    assert (status.phase, status.reason, status.exit_code) == (Phase.RUNNING, "Beating", None)
    assert (status.stage, status.step, status.of, status.loss, status.eta_seconds) == ("train", 7, 60, 1.5, 100.0)
    assert status.message == "attempt 1 (site paris, pod first) runs"


def test_a_lease_of_an_older_attempt_is_not_the_newest_ones_progress() -> None:
    status = read_status(LIVING, [running()], attempt(2, "ours", age=5), NOW)
    assert (status.phase, status.attempt, status.stage, status.step) == (Phase.RUNNING, 2, None, None)


def test_an_attempt_whose_pods_cannot_be_read_runs_as_long_as_it_beats() -> None:
    assert read_status(LIVING, None, documents(5), NOW).phase == Phase.RUNNING
    assert read_status(LIVING, None, documents(91), NOW).phase == Phase.RECOVERING


def test_an_attempt_without_a_job_uid_is_known_by_its_pod() -> None:
    assert read_status(LIVING, [running()], documents(5, None), NOW).reason == "Beating"
    assert read_status(LIVING, [running()], documents(91, None), NOW).reason == "Silent"


def test_an_attempt_is_silent_for_so_long() -> None:
    status = read_status(LIVING, [running()], documents(91), NOW)
    assert (status.reason, status.exit_code) == ("Silent", None)
    assert "no sign of life for 91 s" in status.message


def test_a_pod_that_has_not_claimed_is_starting_and_later_looked_into() -> None:
    soon, late = (read_status(LIVING, [running("first", since)], NOTHING, NOW) for since in (JUST_NOW, LONG_AGO))
    assert (soon.phase, soon.reason) == (Phase.RUNNING, "Starting")
    assert (late.phase, late.reason) == (Phase.RUNNING, "NoHeartbeat")


def test_a_lost_node_is_named_with_its_remedy() -> None:
    for which, phase in (("alive", Phase.RECOVERING), ("failing", Phase.FAILED)):
        status = read_status(JOBS[which], PODS["lost"], documents(300), NOW)
        assert (status.phase, status.reason) == (phase, "NodeLost")
        assert "kubectl taint nodes node-1 node.kubernetes.io/out-of-service" in status.resolution


def test_a_pod_within_its_grace_period_is_on_no_lost_node() -> None:
    for when in ("2026-03-01T12:02:00Z", "2026-03-01T11:59:10Z"):
        assert read_status(JOBS["failing"], [deleted(running(), when)], documents(300), NOW).phase == Phase.FAILING


def test_a_queue_of_kueue_is_named() -> None:
    held = job(suspend=True)
    held["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    assert "the queue gpu" in read_status(held, [], NOTHING, NOW).message
    assert read_status(JOBS["queued"], [], NOTHING, NOW).reason == "Suspended"


def test_a_queued_job_that_is_deleted_is_ending() -> None:
    status = read_status(deleted(job(suspend=True), JUST_NOW), [], NOTHING, NOW)
    assert (status.phase, status.reason) == (Phase.FAILING, "JobDeleted")


def test_a_condition_that_is_not_true_is_none() -> None:
    over = job("Failed", "Complete", "FailureTarget")
    for condition in over["status"]["conditions"]:
        condition["status"] = "False"
    assert read_status(over, [], NOTHING, NOW).phase == Phase.PENDING


def test_without_a_job_the_outcome_says_why_it_failed() -> None:
    status = read_status(None, None, documents(5, outcome=OUTCOME), NOW)
    assert (status.reason, status.exit_code, status.resolution) == ("DEVICE", 71, "Drain the node.")
    assert status.job_uid is None


def test_without_a_job_and_an_outcome_it_says_that_nothing_is_left() -> None:
    status = read_status({}, [], documents(91), NOW)
    assert (status.phase, status.reason) == (Phase.FAILED, "JobGone")
    assert status.message == "its Job is gone, and it left no result"


def test_without_a_job_and_an_attempt_it_may_be_queued_elsewhere() -> None:
    status = read_status(None, None, replace(NOTHING, has_config=True))
    assert (status.phase, status.terminal, status.reason) == (Phase.PENDING, False, "NoJobHere")
    assert "queued in another cluster or namespace" in status.message
    assert "`launch`" in status.resolution


@pytest.mark.parametrize(
    ("found", "phase"),
    [
        (NOTHING, None),
        (replace(NOTHING, has_config=True), None),
        (replace(documents(500), result=RESULT), Phase.SUCCEEDED),
        (replace(documents(500), cancelled=CANCELLED), None),
        (documents(5), None),
        (documents(500), None),
        *((documents(5, outcome=OUTCOME.model_copy(update={"code": code})), None) for code in (0, 65, 69, 75, 79, 137)),
    ],
)
def test_the_store_alone_decides_what_no_job_could_change(found: RunDocuments, phase: Phase | None) -> None:
    status = ended_by_store(found)
    assert (status and status.phase) == phase
    assert status is None or status.terminal


def test_an_attempt_elsewhere_is_named() -> None:
    for which, pods in ((None, []), (LIVING, [running("ours")])):
        status = read_status(which, pods, BEATS["elsewhere"], NOW)
        assert (status.phase, status.reason) == (Phase.RUNNING, "RunsElsewhere")
        assert "attempt 1 (site paris, pod far)" in status.message


def test_a_status_is_read_back_as_it_was_written() -> None:
    status = read_status(LIVING, [running()], documents(5), NOW)
    assert RunStatus.model_validate_json(status.model_dump_json()) == status


def pruned(tree: Any) -> st.SearchStrategy[Any]:
    """An object of Kubernetes with any of its fields missing or null."""
    if isinstance(tree, dict):
        return st.fixed_dictionaries({}, optional={name: pruned(inner) for name, inner in tree.items()})
    if isinstance(tree, list):
        return st.lists(st.one_of(*map(pruned, tree)), max_size=3) if tree else st.just([])
    return st.sampled_from((tree, None))


KINDS = ("Failed", "FailureTarget", "Complete", "SuccessCriteriaMet", "Suspended")
WHOLE = deleted(job(*KINDS, suspend=True), JUST_NOW)
WHOLE["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
TOLD = canonical_bytes(OUTCOME).decode()
POD_LISTS = st.lists(
    st.sampled_from(
        [deleted(running(), LONG_AGO), ended(0), ended(75, TOLD, "second"), pod("third", "Pending")]
    ).flatmap(pruned),
    max_size=3,
)
JOB_TREES = st.sampled_from([WHOLE, *(job(kind) for kind in KINDS)]).flatmap(pruned)
OUTCOMES = st.sampled_from((0, 65, 71, 75, 137)).map(lambda code: OUTCOME.model_copy(update={"code": code}))


@st.composite
def any_documents(draw: st.DrawFn) -> RunDocuments:
    """Any of them there or not."""
    found = documents(
        draw(st.none() | st.floats(-10, 1e6)),
        draw(st.sampled_from(("ours", "another", None))),
        draw(st.none() | OUTCOMES),
    )
    given = {name: draw(st.sampled_from((value, None))) for name, value in vars(found).items() if name != "run_id"}
    if given["lease"] is None and given["claim"] is None:
        given["lease_age"] = None
    cancelled = CANCELLED.model_copy(update={"attempt": draw(st.integers(0, 2))})
    return RunDocuments(**given | {"run_id": RUN, "cancelled": draw(st.sampled_from((cancelled, None)))})


EVERYTHING = (st.none() | JOB_TREES, st.none() | POD_LISTS, any_documents())


@settings(max_examples=400, deadline=None)
@given(*EVERYTHING)
def test_whatever_is_missing_there_is_a_verdict(
    which: Json | None, pods: list[Json] | None, found: RunDocuments
) -> None:
    status = read_status(which, pods, found, NOW)
    assert status.phase != Phase.SUCCEEDED, "without a result nothing has succeeded"
    assert status.terminal == (status.phase in {Phase.FAILED, Phase.CANCELLED})
    assert status.reason
    assert "None" not in status.message + status.resolution
    assert read_status(which, pods, replace(found, result=RESULT), NOW).phase == Phase.SUCCEEDED


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(("FailureTarget", "SuccessCriteriaMet", "Suspended")), POD_LISTS, any_documents())
def test_only_a_final_condition_a_lost_node_or_a_cancellation_ends_a_job(
    condition: str, pods: list[Json], found: RunDocuments
) -> None:
    status = read_status(job(condition), pods, replace(found, cancelled=None), NOW)
    assert not status.terminal or (condition, status.reason) == ("FailureTarget", "NodeLost")
