"""The scratch that a run needs, and a config that asks for less."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.config import Dataset, Export, Lora, Quantization, Recipe, Training
from job.contract.config_file import parse_config
from job.contract.disk import BITS_PER_WEIGHT, DiskNeed, check_scratch, disk_need
from job.contract.errors import ConfigError

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


CONFIG = b"""name: tiny
base_model: /base
dataset: {train: rows.jsonl}
training: {max_steps: 1}
"""
NEED = DiskNeed({"base model": 6 << 30, "GGUF f16": 6 << 30, "slack": (1 << 30) + 1})


def check(text: bytes) -> None:
    check_scratch(parse_config(text, "bot.yaml"), NEED, text, "bot.yaml")


@pytest.mark.parametrize(
    ("compute", "where"),
    [
        (b"compute:\n  gpus: 1\n  scratch_gib: 13\n", "line 7"),
        (b"# \xc3\xa9\ncompute: {scratch_gib: 13}\n", "line 6"),
    ],
)
def test_a_scratch_that_is_too_small_is_told_with_its_line_and_the_need(compute: bytes, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(b"\xef\xbb\xbf" + CONFIG + compute)
    assert caught.value.message == (
        f"bot.yaml: {where}: compute.scratch_gib: 13 GiB, and the run needs 13.0 "
        "(in GiB: base model 6.0, GGUF f16 6.0, slack 1.0)"
    )
    assert "Set it to 14 or more" in caught.value.resolution


def test_a_scratch_that_suffices_is_taken() -> None:
    check(CONFIG + b"compute: {scratch_gib: 13.1}\n")
    check(CONFIG)


def test_the_line_is_that_of_the_nearest_key_where_the_default_is_too_small() -> None:
    need = DiskNeed({"base model": 60 << 30})
    for text, where in ((CONFIG + b"compute: {gpus: 1}\n", "line 5"), (CONFIG, "config")):
        with pytest.raises(ConfigError, match=rf"^bot.yaml: {where}: compute\.scratch_gib: 50 GiB"):
            check_scratch(parse_config(text, "bot.yaml"), need, text, "bot.yaml")
