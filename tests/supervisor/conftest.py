"""A run whose spec names nothing real: what claims, heartbeats and results need of it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from job.contract.config import Dataset, Recipe, Training
from job.contract.documents import FrozenDataset, FrozenModel, FrozenObject, Spec
from job.run import Run
from job.settings import Settings, read_settings
from job.storage.opening import open_storage


@pytest.fixture
def spec() -> Spec:
    recipe = Recipe(name="bot", base_model="/base", dataset=Dataset(train="/rows"), training=Training(max_steps=1))
    rows = FrozenObject(uri="/rows", size=1, etag="1")
    return Spec(
        recipe=recipe,
        gpus=0,
        base_model=FrozenModel(uri="/base", files=()),
        dataset=FrozenDataset(train=(rows,)),
        image=None,
        code_version="1",
    )


@pytest.fixture
def run(spec: Spec, tmp_path: Path) -> Run:
    return Run(open_storage(str(tmp_path / "runs")), spec, "bot-0123456789")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    flags = ["--config", "c.yaml", "--runs", str(tmp_path / "runs"), "--scratch", str(tmp_path / "scratch")]
    return read_settings(flags, {"FINETUNE_STALE_SECONDS": "0.5", "FINETUNE_HEARTBEAT_SECONDS": "0.1"})


@pytest.fixture
def settings_of(settings: Settings) -> Callable[[str], Settings]:
    """The settings of a pod of the Job with that uid."""

    def of(job_uid: str) -> Settings:
        return replace(settings, site=replace(settings.site, job_uid=job_uid, site="paris", pod=f"pod-of-{job_uid}"))

    return of


@pytest.fixture
def logged() -> Iterator[LogCapture]:
    """What is logged within a test."""
    capture, before = LogCapture(), structlog.get_config()
    structlog.configure(processors=[capture])
    yield capture
    structlog.configure(**before)
