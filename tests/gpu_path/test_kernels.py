"""Each kernel alone, against torch."""

import subprocess

import pytest

from tests.gpu_path.emulation import on_card, replace
from tests.gpu_path.kernels_run import Found, run_kernels

NAMES = (
    "RMSNorm",
    "RMSNorm of Gemma",
    "residual and RMSNorm",
    "LayerNorm",
    "RoPE with positions",
    "RoPE without positions",
    "SwiGLU",
    "GeGLU",
    "cross entropy",
    "cross entropy, confident",
    "cross entropy in chunks",
    "NF4 to float32",
    "NF4 to bfloat16",
    "NF4 to float16",
    "NF4 to bfloat16, not nested",
    "NF4 gemv, bfloat16",
    "NF4 gemv, float16, two rows",
)
# A product's output is rounded to its type; the other kernels compute in float32.
TOLERANCE = {"NF4 gemv, bfloat16": 2**-8, "NF4 gemv, float16, two rows": 2**-10, "cross entropy, confident": 1e-5}
"""The largest relative difference where it is not 2e-6, or nothing at all for NF4."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run_kernels(tmp_path_factory.mktemp("kernels") / "run")


def test_no_kernel_is_left_out(found: Found) -> None:
    assert tuple(found) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_computes_what_torch_does(name: str, found: Found) -> None:
    assert on_card() or found[name]["launches"], "no kernel ran"
    if name.startswith("NF4 to") and not on_card():
        assert found[name]["apart"] == 0
    else:
        assert found[name]["apart"] <= TOLERANCE.get(name, 2e-6 if not on_card() else 1e-3)


def test_an_attribute_that_an_upgrade_moved_is_named() -> None:
    with pytest.raises(AttributeError, match=r"subprocess\.moved_away"):
        replace(subprocess, "moved_away", None)
