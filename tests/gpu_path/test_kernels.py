"""Each kernel alone, against torch."""

import subprocess

import pytest

from tests.gpu_path.emulation import on_card
from tests.gpu_path.kernels_run import Found, run_kernels
from tests.gpu_path.replacing import replace

_RMS = {"_rms_layernorm_backward", "_rms_sum_dw_partials"}
CHECKS: dict[str, tuple[set[str], float]] = {
    "RMSNorm": ({"_rms_layernorm_forward", *_RMS}, 2e-6),
    "RMSNorm of Gemma": ({"_gemma_rms_layernorm_forward", *_RMS}, 2e-6),
    "residual and RMSNorm": ({"_add_rms_layernorm_inference"}, 2e-6),
    "LayerNorm": ({"layernorm_forward", "layernorm_backward_dw", "_layernorm_sum_partials"}, 2e-6),
    "RoPE with positions": ({"_rope_embedding_QK"}, 2e-6),
    "RoPE without positions": ({"_rope_embedding_QK"}, 2e-6),
    "SwiGLU": ({"_fg_kernel", "_DWf_DW_dfg_kernel"}, 2e-6),
    "GeGLU": ({"_exact_forward_kernel", "_exact_backward_kernel"}, 2e-6),
    "cross entropy": ({"_cross_entropy_forward", "_cross_entropy_backward"}, 2e-6),
    "cross entropy, confident": ({"_cross_entropy_forward", "_cross_entropy_backward"}, 1e-5),
    "cross entropy in chunks": ({"_chunked_cross_entropy_forward", "_cross_entropy_backward"}, 2e-6),
    "NF4 to float32": ({"_nf4_dequant_kernel"}, 0),
    "NF4 to bfloat16": ({"_nf4_dequant_kernel"}, 0),
    "NF4 to float16": ({"_nf4_dequant_kernel"}, 0),
    "NF4 to bfloat16, not nested": ({"_nf4_dequant_kernel"}, 0),
    "NF4 gemv, bfloat16": ({"_gemv_nf4_words_kernel"}, 2**-8),  # its output is rounded to its type
    "NF4 gemv, float16, two rows": ({"_gemv_nf4_words_kernel"}, 2**-10),
}
"""Of each check the kernels that must run, and the largest relative difference."""
CARD = 1e-3
"""The same on a card where it is smaller, provisionally: its kernels contract multiplications and additions."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run_kernels(tmp_path_factory.mktemp("kernels") / "run")


def test_no_check_is_left_out(found: Found) -> None:
    assert found.keys() == CHECKS.keys()


@pytest.mark.parametrize("name", CHECKS)
def test_a_kernel_computes_what_torch_does(name: str, found: Found) -> None:
    kernels, tolerance = CHECKS[name]
    assert found[name]["apart"] <= (max(tolerance, CARD) if on_card() else tolerance)
    assert on_card() or found[name]["launches"].keys() == kernels


def test_an_attribute_that_an_upgrade_moved_is_named() -> None:
    with pytest.raises(AttributeError, match=r"subprocess\.moved_away"):
        replace(subprocess, "moved_away", None)
