"""The commit protocol, on a real directory."""

from pathlib import Path

import pytest

from job.contract.documents import Artifacts, Latest, Result, Spec
from job.contract.errors import DataError, TakenError
from job.contract.keys import latest_key
from job.contract.model import canonical_bytes
from job.run import Run, finish, finished, put_result, put_spec
from tests.results import result_of


def done(run: Run) -> Result:
    put_spec(run, b"config")
    return put_result(run, result_of(run))


def latest(run: Run) -> Latest:
    found = run.storage.get(latest_key("bot"))
    assert found
    return Latest.model_validate_json(found[0])


def test_a_run_without_a_result_is_not_finished(run: Run) -> None:
    assert finished(run) is None


def test_a_committed_run_is_finished_indexed_and_the_latest(run: Run) -> None:
    result = done(run)
    assert finished(run) == result
    assert latest(run).run_id == run.run_id
    assert [stat.key.endswith(f"Z-{run.run_id}") for stat in run.storage.list("models/bot/runs/")] == [True]


def test_a_second_result_changes_nothing(run: Run) -> None:
    first = done(run)
    other = result_of(run).model_copy(update={"attempt": 2})
    assert put_result(run, other) == first


def test_an_older_run_never_moves_latest_back(run: Run, spec: Spec) -> None:
    old = Run(run.storage, spec.model_copy(update={"again": 1}), "bot-old")
    put_spec(old, b"config")
    done(run)
    put_result(old, result_of(old))
    assert latest(run).run_id == run.run_id


def test_a_start_finishes_what_an_earlier_one_left_out(run: Run) -> None:
    put_spec(run, b"config")
    run.storage.put(run.keys.result, canonical_bytes(result_of(run)))
    result = finished(run)
    assert result
    finish(run, result)
    assert latest(run).run_id == run.run_id


def test_a_result_whose_artifact_has_gone_names_again(run: Run) -> None:
    put_spec(run, b"config")
    result = result_of(run)
    gone = result.artifacts.lora[0].model_copy(update={"key": "runs/x/attempts/1/lora/gone"})
    missing = result.model_copy(update={"artifacts": Artifacts(lora=(gone,))})
    run.storage.put(run.keys.result, canonical_bytes(missing))
    with pytest.raises(TakenError) as raised:
        finished(run)
    assert "--again" in raised.value.resolution


def test_the_result_of_another_spec_is_73(run: Run, spec: Spec) -> None:
    done(run)
    with pytest.raises(TakenError, match="another spec"):
        finished(Run(run.storage, spec.model_copy(update={"again": 1}), run.run_id))


def test_a_spec_under_a_taken_id_is_73(run: Run, spec: Spec) -> None:
    put_spec(run, b"config")
    with pytest.raises(TakenError, match="another spec"):
        put_spec(Run(run.storage, spec.model_copy(update={"again": 1}), run.run_id), b"config")


def test_a_night_without_changes_points_at_the_newest_run(run: Run, spec: Spec) -> None:
    first = done(run)
    night = Run(run.storage, spec, "bot-night-2")
    result = finished(night)
    assert result
    assert (result.run_id, result.same_as, result.artifacts) == ("bot-night-2", run.run_id, first.artifacts)
    put_spec(night, b"config")
    put_result(night, result)
    assert latest(run).run_id == run.run_id, "the newest trained run stays the latest"


def test_a_result_that_no_one_can_read_says_so(run: Run) -> None:
    run.storage.put(run.keys.result, b'{"schema_version": 2}')
    with pytest.raises(DataError, match="not a Result that this version reads"):
        finished(run)


def test_a_night_trains_when_the_newest_runs_artifacts_have_gone(run: Run, spec: Spec, tmp_path: Path) -> None:
    artifact = done(run).artifacts.lora[0]
    (tmp_path / "runs" / artifact.key).unlink()
    assert finished(Run(run.storage, spec, "bot-night-2")) is None
