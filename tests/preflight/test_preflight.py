"""Disk, CPU and trackers: what is accepted, and what is said where the machine falls short."""

import os
import shutil
from pathlib import Path

import pytest

from job.contract.disk import GIB, DiskNeed
from job.contract.errors import ConfigError, LocalIOError
from job.preflight import check_device, check_disk, check_trackers


def test_a_full_disk_is_told_with_the_numbers(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_disk(DiskNeed({"base model": free // 2}), tmp_path)
    with pytest.raises(LocalIOError) as caught:
        check_disk(DiskNeed({"base model": free, "GGUF f16": 7 * GIB, "adapter": 1}), tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "GGUF f16 7.0" in caught.value.message
    assert "adapter" not in caught.value.message


def test_a_cpu_is_described() -> None:
    device = check_device(0)
    assert device.kind == "cpu"
    assert len(device.names) == 1
    assert device.memory_bytes > GIB // 2
    assert device.detail == f"{len(os.sched_getaffinity(0))} cores"


def test_trackers_that_work_are_accepted() -> None:
    check_trackers((), {})
    check_trackers(("tensorboard",), {})


def test_every_tracker_that_cannot_work_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        check_trackers(("tensorboard", "absent_tracker"), {})
    assert caught.value.message == "training.report_to: absent_tracker is not installed"


def test_a_tracker_without_its_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_trackers(("wandb", "mlflow"), {"WANDB_API_KEY": ""})
    assert caught.value.message == "training.report_to: wandb needs WANDB_API_KEY, mlflow needs MLFLOW_TRACKING_URI"
    check_trackers(("wandb", "mlflow"), {"WANDB_API_KEY": "key", "MLFLOW_TRACKING_URI": "http://mlflow"})
