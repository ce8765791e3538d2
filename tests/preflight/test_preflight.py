"""Disk, CPU and trackers: what is accepted, and what is said where the machine falls short."""

import os
import shutil
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.config import Dataset, Export, Lora, Quantization, Recipe, Training
from job.contract.errors import ConfigError, LocalIOError
from job.machine import GIB
from job.preflight import BITS_PER_WEIGHT, DiskNeed, check_device, check_disk, check_trackers, disk_need

GB = 10**9


def recipe(export: Export | None = None, r: int = 16) -> Recipe:
    return Recipe(
        name="tiny",
        base_model="/base",
        dataset=Dataset(train="rows.jsonl"),
        training=Training(max_steps=1),
        lora=Lora(r=r),
        export=export or Export(),
    )


def test_a_3b_model_with_three_files_needs_what_was_worked_out_by_hand() -> None:
    # base, merged model and 16-bit intermediate 6.4 each, f16 6.4, q8_0 3.4, q4_k_m 2.0: 31.0 before slack
    need = disk_need(recipe(Export(gguf=("f16", "q8_0", "q4_k_m"))), int(6.4 * GB), int(6.4 * GB), GB // 100)
    assert 31.0 * GB < need.total < 37 * GB
    assert need.parts["GGUF q8_0"] == pytest.approx(3.4 * GB, rel=0.01)
    assert need.parts["GGUF q4_k_m"] == pytest.approx(2.0 * GB, rel=0.03)


def test_an_adapter_alone_needs_no_merged_model() -> None:
    need = disk_need(recipe(Export(gguf=(), lora_gguf=True)), 6 * GB, 6 * GB, 0)
    assert set(need.parts) == {"base model", "dataset", "checkpoints", "adapter", "slack"}
    assert disk_need(recipe(Export(gguf=(), merged=True)), 6 * GB, 6 * GB, 0).parts["merged model"] == 6 * GB


@pytest.mark.parametrize(("file", "is_quantized"), [("f32", False), ("bf16", False), ("q8_0", True), ("q4_k_m", True)])
def test_a_quantized_file_is_made_from_another(file: Quantization, is_quantized: bool) -> None:
    need = disk_need(recipe(Export(gguf=(file,))), GB, GB, 0)
    assert ("16-bit GGUF to quantize from" in need.parts) == is_quantized


@given(
    files=st.lists(st.sampled_from(get_args(Quantization)), unique=True),
    merged=st.booleans(),
    weights=st.integers(1, 200 * GB),
    r=st.integers(1, 256),
)
def test_more_asked_for_is_never_less_needed(files: list[Quantization], merged: bool, weights: int, r: int) -> None:
    need = disk_need(recipe(Export(gguf=tuple(files), merged=merged), r), weights, weights, 0)
    assert (
        need.total <= disk_need(recipe(Export(gguf=get_args(Quantization), merged=True), r), weights, weights, 0).total
    )
    assert need.total <= disk_need(recipe(Export(gguf=tuple(files), merged=merged), r + 1), weights, weights, 1).total
    assert need.total > weights * (1 + sum(BITS_PER_WEIGHT[name] for name in files) / 16)


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
