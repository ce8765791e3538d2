"""Which runs are listed from the store alone, in a directory and in S3. With Jobs: tests/cluster/test_listing.py."""

from datetime import UTC, datetime, timedelta

import pytest

from job.contract.errors import DataError
from job.contract.keys import RunKeys, index_key, latest_key
from job.storage import Storage
from launcher.listing import list_runs
from launcher.status import Phase
from tests.launcher.runs import publish, run_of


def now() -> datetime:
    return datetime.now(UTC)


def test_runs_are_listed_newest_first_and_no_more_than_asked_for(storage: Storage) -> None:
    result = publish(run_of(storage, "bot-0123456789"))
    for name, day in (("bot", 1), ("bot", 3), ("bottle", 2), ("bottle", 4)):
        storage.put(index_key(name, f"2020010{day}T000000Z", f"{name}-{day}"), b"")
    newest, *older = list_runs(storage, None, "bot", 10)
    assert (newest.name, newest.status.run_id, newest.status.loss) == ("bot", "bot-0123456789", result.train.train_loss)
    assert abs(now() - newest.since) < timedelta(minutes=1)
    assert [line.status.run_id for line in older] == ["bot-3", "bot-1"]
    assert older[0].since == datetime(2020, 1, 3, tzinfo=UTC)
    assert older[0].status.phase == Phase.UNKNOWN
    every = ["bot-0123456789", "bottle-4", "bot-3", "bottle-2", "bot-1"]
    assert [line.status.run_id for line in list_runs(storage, None, None, 10)] == every
    assert [line.status.run_id for line in list_runs(storage, None, None, 2)] == every[:2]
    assert list_runs(storage, None, None, 0) == []
    assert list_runs(storage, None, "bo", 10) == []


def test_only_the_rows_that_are_shown_are_read(storage: Storage) -> None:
    for day in (1, 2):
        storage.put(index_key("bot", f"2020010{day}T000000Z", f"bot-{day}"), b"")
    storage.put(RunKeys("bot-1").result, b"damaged")
    assert [line.status.run_id for line in list_runs(storage, None, "bot", 1)] == ["bot-2"]
    with pytest.raises(DataError, match=r"runs/bot-1/result\.json"):
        list_runs(storage, None, "bot", 2)


def test_what_else_lies_beside_the_index_is_no_run(storage: Storage) -> None:
    for key in (latest_key("bot"), "models/README.md", "models/bot/runs/notes", "models/bot/runs/20209999T000000Z-x"):
        storage.put(key, b"")
    assert list_runs(storage, None, None, 10) == []


def test_no_runs_are_listed_where_there_are_none(storage: Storage) -> None:
    assert list_runs(storage, None, None, 10) == list_runs(storage, None, "bot", 10) == []
