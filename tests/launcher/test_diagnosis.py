"""What `why` says: each category from a status that a real cluster told (`make record-diagnoses`)."""

import ast
import copy
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.contract.documents import Cancelled, Claim, Lease, Outcome, Result
from job.contract.exits import Exit
from launcher.categories import Category
from launcher.diagnosis import Diagnosis, diagnose
from launcher.manifest import ENDED_BECAUSE
from launcher.runs import RunDocuments
from tests.results import result

Json = dict[str, Any]

HERE = Path(__file__).parent
RECORDERS = ("cluster/test_diagnosis.py", "cluster/node/test_diagnosis.py")
STATUSES = {path.stem: path for path in (HERE / "recorded").glob("*.json")}
STEMS = sorted(STATUSES)
RUN = "bot-0123456789"
RESULT = result(run_id=RUN)


def read(stem: str) -> Json:
    found: Json = json.loads(STATUSES[stem].read_bytes())
    return found


def documents(told: Json, result: Result | None = None, cancelled: Cancelled | None = None) -> RunDocuments:
    age = told.get("lease_age")

    def document(kind: Any, name: str) -> Any:
        return kind.model_validate_json(json.dumps(told[name])) if told.get(name) else None

    return RunDocuments(
        run_id=RUN,
        spec=None,
        lease=document(Lease, "lease"),
        lease_age=None if age is None else timedelta(seconds=age),
        claim=document(Claim, "claim"),
        outcome=document(Outcome, "outcome"),
        result=result,
        cancelled=cancelled,
    )


def diagnosed(told: Json, result: Result | None = None, cancelled: Cancelled | None = None) -> Diagnosis | None:
    found = documents(told["documents"], result, cancelled)
    now = datetime.fromisoformat(told["now"])
    return diagnose(told["job"], told["pods"], told["events"], found, now, told.get("queue_exists", True))


def texts(tree: Any) -> Iterator[str]:
    """Every text in it, also inside a termination message that is JSON."""
    if isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from texts(part)
    elif isinstance(tree, str):
        yield tree
        if tree.startswith("{"):
            yield from texts(json.loads(tree))


def category_of(stem: str) -> str:
    return stem.partition("-")[0].upper()


def test_every_category_has_a_status() -> None:
    assert {category_of(stem) for stem in STEMS} == set(Category.__members__)


def test_each_status_is_recorded_by_the_cluster_test_of_its_name_or_told_why_not() -> None:
    trees = [ast.walk(ast.parse((HERE.parent / module).read_bytes())) for module in RECORDERS]
    texts = {node.value for tree in trees for node in tree if isinstance(node, ast.Constant)}
    names = {text for text in texts if isinstance(text, str) and category_of(text) in Category.__members__}
    assert set(STEMS) == names


def test_every_exit_code_has_its_category() -> None:
    assert {code.name for code in Exit} - {"OK"} <= {category.name for category in Category}


@pytest.mark.parametrize("stem", STEMS)
def test_each_status_has_its_category(stem: str) -> None:
    told = read(stem)
    found = diagnosed(told)
    assert found
    assert found.category == Category[category_of(stem)], found
    assert any(found.said in text for text in texts(told)), found.said
    assert (found.by == "launcher") == (found.said == "")
    assert found.resolution
    assert not set("{}") & set(found.summary), "every fact is filled in"
    assert "None" not in found.summary + found.resolution
    assert (" ".join(found.said.split()) in found.text, "\n" in found.text) == (True, False)


@pytest.mark.parametrize("stem", STEMS)
def test_a_run_that_has_its_result_is_well(stem: str) -> None:
    assert diagnosed(read(stem), RESULT) is None


@pytest.mark.parametrize("stem", STEMS)
def test_a_run_that_somebody_cancelled_is_as_it_should_be(stem: str) -> None:
    told = read(stem)
    now = datetime.fromisoformat(told["now"])
    uid = told["job"]["metadata"]["uid"] if told["job"] else None
    assert diagnosed(told, None, Cancelled(by="ada", at=now, job_uid=uid, attempt=1)) is None


@pytest.mark.parametrize("stem", STEMS)
@settings(max_examples=30)
@given(data=st.data())
def test_whatever_is_missing_it_answers(stem: str, data: st.DataObject) -> None:
    told = read(stem)
    places = [place for name in ("job", "pods", "events") for place in parts(told, name)]
    for tree, key in data.draw(st.lists(st.sampled_from(places), max_size=8)):
        if isinstance(tree, dict):
            tree.pop(key, None)
        elif key < len(tree):
            del tree[key]
    diagnosed({"job": None, "pods": None, "events": [], **told})


def parts(tree: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in it, as what holds it and by which key."""
    yield tree, key
    inner = tree[key]
    if isinstance(inner, dict | list):
        for name in inner if isinstance(inner, dict) else range(len(inner)):
            yield from parts(inner, name)


# The newest evidence wins

BEFORE, AFTER, LATER = "1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z", "2999-01-01T00:00:01Z"
CLAIM = read("silent")["documents"]["claim"]
REFUSED = {"reason": "FailedCreate", "message": 'Error creating: pods "x" is forbidden: exceeded quota: gpus'}
RUNNING = read("silent") | {"documents": {"claim": CLAIM, "lease_age": 5}}


def refused(when: str) -> Json:
    return REFUSED | {"lastTimestamp": when, "involvedObject": {"kind": "Job"}}


def category(told: Json, *more: Json) -> Category | None:
    told = copy.deepcopy(told)
    found = diagnosed(told | {"events": [*told["events"], *more]})
    return found.category if found else None


def test_an_attempt_that_beats_is_well_whatever_was_before() -> None:
    assert category(RUNNING) is None
    assert category(RUNNING, refused(BEFORE), refused(AFTER)) is None


def test_a_pod_that_has_just_started_is_well() -> None:
    told = RUNNING | {"documents": {}}
    assert category(told, refused(BEFORE)) is None


def test_a_refusal_that_is_older_than_the_newest_pod_is_history() -> None:
    assert category(read("image_pull"), refused(BEFORE)) == Category.IMAGE_PULL
    assert category(read("device"), refused(BEFORE)) == Category.DEVICE


def test_a_refusal_that_is_newer_than_the_last_ending_wins() -> None:
    assert category(read("device"), refused(AFTER)) == Category.QUOTA_EXCEEDED


def test_a_refusal_is_history_once_a_pod_was_made_that_has_gone() -> None:
    made = {"reason": "SuccessfulCreate", "lastTimestamp": AFTER, "involvedObject": {"kind": "Job"}, "type": "Normal"}
    told = read("quota_exceeded")
    assert category(told, made) is None
    assert category(told, made, refused(LATER)) == Category.QUOTA_EXCEEDED


def test_the_newest_of_several_refusals_is_told() -> None:
    assert category(read("account_missing"), refused(BEFORE)) == Category.ACCOUNT_MISSING
    assert category(read("account_missing"), refused(AFTER)) == Category.QUOTA_EXCEEDED


def test_a_next_pod_that_runs_makes_the_last_ending_history() -> None:
    told = read("killed")
    [running] = copy.deepcopy(RUNNING["pods"])
    running["metadata"] |= {"name": "next", "creationTimestamp": AFTER}
    running["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = AFTER
    assert category(told | {"pods": [*told["pods"], running]}) is None


def test_a_next_pod_that_waits_is_told_before_the_last_ending() -> None:
    told = read("killed")
    [waits] = read("no_gpu")["pods"]
    waits["metadata"] |= {"name": "next", "creationTimestamp": AFTER}
    assert category(told | {"pods": [*told["pods"], waits]}) == Category.NO_GPU


def test_a_volume_that_was_mounted_at_last_is_history() -> None:
    told = read("container_cannot_start-mount")
    pulls = {"reason": "Pulling", "type": "Normal", "message": "Pulling image", "lastTimestamp": AFTER}
    assert category(told, pulls | {"involvedObject": told["events"][-1]["involvedObject"]}) is None


def test_a_pod_that_no_node_takes_is_told_although_its_making_was_told_later() -> None:
    told = read("no_gpu-ended") | {"pods": []}
    [made] = [event for event in told["events"] if event["reason"] == "SuccessfulCreate"]
    made["lastTimestamp"] = AFTER
    assert category(told) == Category.NO_GPU
    assert category(told, made | {"message": "Created pod: another"}) == Category.DEADLINE_EXCEEDED


def test_a_pause_between_two_pulls_is_no_progress() -> None:
    told = read("image_pull-ended") | {"pods": []}
    [pulls] = [event for event in told["events"] if event["reason"] == "Pulling"]
    pauses = {"reason": "BackOff", "message": 'Back-off pulling image "x"', "lastTimestamp": AFTER}
    assert category(told, pulls | pauses) == Category.IMAGE_PULL


def test_another_try_to_pull_does_not_hide_why_the_one_before_failed() -> None:
    told = read("image_pull-ended")
    [pulling] = [event for event in told["events"] if event["reason"] == "Pulling"]
    pulling |= {"count": 3, "lastTimestamp": told["now"]}
    found = diagnosed(told)
    assert found
    assert (found.category, "Failed to pull" in found.said) == (Category.IMAGE_PULL, True)


def test_all_that_happens_within_a_second_stays_in_its_order() -> None:
    """The scheduler tells microseconds, and the kubelet the second alone."""
    told = read("image_pull-ended")
    [scheduled] = [event for event in told["events"] if event["reason"] == "Scheduled"]
    second = scheduled["eventTime"].partition(".")[0]
    for event in told["events"]:
        if event is not scheduled:
            event |= {"count": 1, "firstTimestamp": f"{second}Z", "lastTimestamp": f"{second}Z"}
    told["events"].sort(key=lambda event: event["metadata"]["name"])  # as the API server lists them
    assert category(told) == Category.IMAGE_PULL


def test_a_warning_after_which_the_kubelet_goes_on_is_no_cause() -> None:
    told = read("container_cannot_start-mount")
    warned = {"reason": "MissingClusterDNS", "type": "Warning", "message": "no DNS", "lastTimestamp": AFTER}
    pod = told["events"][0]["involvedObject"] | {"kind": "Pod", "name": told["pods"][0]["metadata"]["name"]}
    assert category(told, warned | {"involvedObject": pod}) == Category.CONTAINER_CANNOT_START
    assert category(told | {"events": []}, warned | {"involvedObject": pod}) is None


def test_the_deadline_is_the_cause_of_what_had_run() -> None:
    scheduled = read("no_gpu-ended")
    started = {"reason": "Started", "type": "Normal", "message": "Started container trainer", "lastTimestamp": AFTER}
    pod = {"kind": "Pod", "name": "x"}
    assert category(scheduled, started | {"involvedObject": pod}) == Category.DEADLINE_EXCEEDED
    claim = CLAIM | {"job_uid": scheduled["job"]["metadata"]["uid"]}
    assert category(scheduled | {"documents": {"claim": claim}}) == Category.DEADLINE_EXCEEDED


def test_a_job_that_the_launcher_ended_is_told_by_what_held_it_else_in_the_launchers_words() -> None:
    told = read("no_gpu-ended")
    reason = "no pod of it ran within 60 s"
    told["job"]["metadata"]["annotations"] = {ENDED_BECAUSE: reason}
    assert category(told) == Category.NO_GPU
    found = diagnosed(told | {"pods": [], "events": []})
    assert found
    assert (found.category, found.said, found.by) == (Category.DEADLINE_EXCEEDED, reason, "launcher")
    assert "--start-timeout" in found.resolution


def test_a_job_that_does_not_exist_and_never_did_is_not_diagnosed() -> None:
    assert category({"now": AFTER, "job": None, "pods": [], "events": [], "documents": {}}) is None


def test_an_attempt_elsewhere_that_beats_is_well() -> None:
    assert category(read("deleted") | {"documents": {"claim": CLAIM, "lease_age": 5}}) is None


# What to do


def resolution(stem: str) -> str:
    found = diagnosed(read(stem))
    assert found
    return found.resolution


def test_what_the_job_advised_is_told_first() -> None:
    assert resolution("gpu_oom") == "Lower training.per_device_train_batch_size to 1."
    assert resolution("killed-child") == "Ask who ends processes on that node."


def test_a_lost_node_has_the_out_of_service_remedy() -> None:
    for stem in ("node_lost", "node_lost-deadline"):
        node = read(stem)["pods"][0]["spec"]["nodeName"]
        taint = f"kubectl taint nodes {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
        assert f"`{taint}`" in resolution(stem)


def test_how_to_launch_again_depends_on_whether_the_job_has_ended() -> None:
    assert "`cancel` and `launch`" in resolution("priority_class_missing")
    assert "`launch --resume`" in resolution("priority_class_missing-ended")
    assert "another attempt goes on" in resolution("device")
    assert "`launch --resume` goes on" in resolution("device-store")
    assert "`launch` goes on" in resolution("deleted")


def test_a_night_that_has_failed_is_not_launched_but_made_by_its_schedule() -> None:
    night = read("device-store")
    night["job"]["metadata"]["ownerReferences"] = [{"kind": "CronJob", "name": "bot"}]
    found = diagnosed(night)
    assert found
    assert "`kubectl create job --from=cronjob/bot bot-$(date +%s)` trains anew" in found.resolution
    assert "launch" not in found.resolution


@pytest.mark.parametrize(
    ("said", "category"),
    [
        ("1 Insufficient nvidia.com/gpu, 1 node(s) were unschedulable", Category.NO_GPU),
        ("1 Insufficient nvidia.com/mig-3g.40gb, 1 Insufficient cpu", Category.NO_GPU),
        ("1 Insufficient cpu, 3 node(s) had untolerated taint(s)", Category.INSUFFICIENT_RESOURCES),
        ("2 node(s) had untolerated taint {a: b}, 1 node(s) were unschedulable", Category.TAINTED),
        ("1 node(s) were unschedulable, 1 node(s) had volume node affinity conflict", Category.CORDONED),
        ("1 node(s) had volume node affinity conflict", Category.VOLUME_UNBOUND),
        ("1 node(s) didn't match Pod's node affinity/selector, 1 Too many pods", Category.INSUFFICIENT_RESOURCES),
        ("1 node(s) didn't have free ports for the requested pod ports", Category.UNSCHEDULABLE),
    ],
)
def test_of_several_causes_the_one_a_person_can_do_most_about(said: str, category: Category) -> None:
    told = read("no_gpu")
    told["pods"][0]["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": said}]
    found = diagnosed(told)
    assert found
    assert (found.category, found.said, found.by) == (category, said, "scheduler")
