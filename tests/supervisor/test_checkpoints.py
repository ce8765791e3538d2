"""Checkpoints on their way to the store: in the background, one at a time, the newest first, the mark last."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from job.attempt import Attempt
from job.checkpoints import Uploads, warn_if_slow
from job.contract.documents import Checkpoint
from job.contract.errors import UnavailableError
from job.contract.events import Loaded
from job.contract.model import sha256_hex
from job.logs import LogBuffer
from job.run import Run
from job.stages import Stages
from job.storage import Progress, Uploaded, no_progress
from job.storage.directory import DirectoryStorage
from tests.attempts import never_overtaken
from tests.supervisor.checkpoints import NAMES, fingerprint, saved


@dataclass(frozen=True)
class Gated(DirectoryStorage):
    """A store that takes a file only while its gate is open, and refuses the ones that it is told to."""

    gate: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    refused: str = "nothing"

    def upload(self, path: Path, key: str, progress: Progress = no_progress) -> Uploaded:
        self.began.set()
        assert self.gate.wait(30)
        if self.refused in key:
            raise UnavailableError(f"{key} cannot be put now")
        return super().upload(path, key, progress)


@contextmanager
def uploads(run: Run, directory: Path) -> Iterator[Uploads]:
    directory.mkdir()
    started = Uploads(Attempt(run, 1, Stages(), LogBuffer(), 30, never_overtaken), fingerprint(run), directory)
    yield started
    started.close()


def steps(run: Run) -> list[int]:
    keys = run.keys.attempt(1)
    return [step for stat in run.storage.list(keys.checkpoints) if (step := keys.completed(stat.key))]


def test_a_checkpoint_is_kept_with_all_its_files_and_leaves_scratch(run: Run, tmp_path: Path) -> None:
    with uploads(run, tmp_path / "uploads") as ours:
        ours.add(saved(tmp_path / "checkpoints", 500))
        assert ours.finish(30)
    prefix = f"runs/{run.run_id}/attempts/1/checkpoints/step-000500/"
    found = run.storage.get(f"{prefix}complete.json")
    assert found
    checkpoint = Checkpoint.model_validate_json(found[0])
    assert (checkpoint.step, checkpoint.fingerprint) == (500, fingerprint(run))
    assert {file.key: file.sha256 for file in checkpoint.files} == {
        prefix + name: sha256_hex(f"{name} of step 500".encode()) for name in NAMES
    }
    assert not list((tmp_path / "uploads").iterdir())
    assert not list((tmp_path / "checkpoints").iterdir())


def test_of_those_that_wait_the_newest_alone_is_sent(run: Run, tmp_path: Path) -> None:
    store = Gated(tmp_path / "runs")
    run = replace(run, storage=store)
    with uploads(run, tmp_path / "uploads") as ours:
        ours.add(saved(tmp_path / "checkpoints", 1))
        assert store.began.wait(30)
        for step in (2, 3, 4):  # training goes on, whatever the store does
            ours.add(saved(tmp_path / "checkpoints", step))
        assert sorted(path.name for path in (tmp_path / "uploads").iterdir()) == ["step-000001", "step-000004"]
        store.gate.set()
        assert ours.finish(30)
    assert steps(run) in ([1, 4], [4])


def test_at_the_end_the_one_on_its_way_gives_way_to_the_newest(run: Run, tmp_path: Path) -> None:
    store = Gated(tmp_path / "runs")
    run = replace(run, storage=store)
    with uploads(run, tmp_path / "uploads") as ours:
        ours.add(saved(tmp_path / "checkpoints", 1))
        assert store.began.wait(30)
        ours.add(saved(tmp_path / "checkpoints", 2))
        assert not ours.finish(0.05)
        store.gate.set()
        assert ours.finish(30)
    assert steps(run) == [2]


def test_a_store_that_does_not_take_it_ends_nothing(run: Run, tmp_path: Path, logged: LogCapture) -> None:
    store = Gated(tmp_path / "runs", refused="step-000001/optimizer.pt")
    store.gate.set()
    run = replace(run, storage=store)
    with uploads(run, tmp_path / "uploads") as ours:
        ours.add(saved(tmp_path / "checkpoints", 1))
        assert not ours.finish(30)
        assert steps(run) == [], "complete.json is put last"
        assert [(entry["log_level"], entry["step"]) for entry in logged.entries] == [("warning", 1)]
        ours.add(saved(tmp_path / "checkpoints", 2))
        assert ours.finish(30)
    assert steps(run) == [2]


def test_nothing_to_keep_is_kept(run: Run, tmp_path: Path) -> None:
    with uploads(run, tmp_path / "uploads") as ours:
        assert ours.finish(30)


def test_one_that_training_has_replaced_is_passed_over(run: Run, tmp_path: Path) -> None:
    gone = saved(tmp_path / "checkpoints", 1)
    Path(gone.directory).rename(tmp_path / "replaced")
    with uploads(run, tmp_path / "uploads") as ours:
        ours.add(gone)
        ours.add(saved(tmp_path / "checkpoints", 2))
        assert ours.finish(30)
    assert steps(run) == [2]


@pytest.mark.parametrize(("grace_seconds", "level"), [(1e-9, "warning"), (1e9, "info")])
def test_a_store_too_slow_for_the_grace_period_is_warned_of(
    run: Run, tmp_path: Path, logged: LogCapture, grace_seconds: float, level: str
) -> None:
    loaded = Loaded(
        trainable_parameters=1000,
        total_parameters=2000,
        dtype="float32",
        linear_4bit=0,
        device="cpu",
        memory_bytes=1,
        effective_batch=1,
    )
    before = set(threading.enumerate())
    warn_if_slow(run, loaded, tmp_path, grace_seconds)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    [entry] = logged.entries
    assert (entry["log_level"], entry["checkpoint_bytes"]) == (level, 12_000)
    assert not (tmp_path / "upload-rate").exists()
