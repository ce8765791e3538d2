"""Triton's interpreter, as the emulation needs it: counted, faster, right in bfloat16, and spoilt on request."""

import dataclasses
import functools
from collections import Counter
from typing import Any

from tests.gpu_path.replacing import replace

SPOILS = {
    "rms_eps": ("_rms_layernorm_forward", "eps_f32 = tl.full((), eps,", "eps_f32 = tl.full((), 10 * eps,"),
    "rms_backward": ("_rms_backward_row", "(n_cols * dY_W - normed * rowsum_dY_normed)", "(n_cols * dY_W)"),
    "rope_backward": ("_rope_embedding_QK", "sin1 = -sin1", "sin1 = sin1"),
    "swiglu_backward": ("_DWf_DW_dfg_kernel", "(1.0 + e_row * (1.0 - se_row))", "1.0"),
    "nf4_offset": ("_nf4_dequant_kernel", "scale = scale + tl.load(offset_ptr)", "scale = scale"),
    "cross_entropy": (
        "_cross_entropy_backward",
        "tl.store(dlogits_ptr + col_offsets, dloss * y",
        "tl.store(dlogits_ptr + col_offsets, 1.001 * dloss * y",
    ),
}
"""Errors that a kernel could have: its name, a piece of its source, and what that is made to read."""


def count_launches(launches: Counter[str]) -> None:
    """Counts each launch by its kernel's name."""
    from triton.runtime import interpreter

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        launches[self.fn.__name__] += 1
        return call(self, *given, **named)

    call = replace(interpreter.GridExecutor, "__call__", counted)


def faster() -> None:
    """A third off the time, with the same results."""
    from triton.runtime import interpreter

    # Overflow checks of integer arithmetic, which compiled kernels have under debug=True only.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    # triton.language is bound anew for the same function at every call of it.
    replace(interpreter, "_patch_lang", functools.lru_cache(maxsize=None)(interpreter._patch_lang))


def bfloat16_arithmetic() -> None:
    """Computes in float32 and rounds to even.

    Triton 3.2's interpreter holds bfloat16 as bit patterns, which it adds and multiplies as integers, and it truncates
    float32 to it. With this, it equals torch bit for bit.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

    def are_bfloat16(*handles: Any) -> bool:
        return all(each.dtype.scalar == tl.bfloat16 for each in handles)

    def widen(each: Any) -> Any:
        return (each.data.astype(np.uint32) << 16).view(np.float32)

    def narrow(values: Any) -> Any:
        values = np.asarray(values, np.float32)
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        if are_bfloat16(source):
            source = handle(widen(source), tl.float32)
        if kind.scalar == tl.bfloat16:
            return handle(narrow(source.data), tl.bfloat16)
        return cast(self, source, kind)

    def binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if not are_bfloat16(left, right):
            return binary(self, left, right, operation)
        out = operation(widen(left), widen(right))
        return handle(out if out.dtype == bool else narrow(out), tl.bfloat16)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not are_bfloat16(x, y, z):
            return fma(self, x, y, z)
        exact = widen(x).astype(np.float64) * widen(y) + widen(z)
        return handle(narrow(exact), tl.bfloat16)

    cast = replace(builder, "cast_impl", cast_impl)
    binary = replace(builder, "binary_op", binary_op)
    fma = replace(builder, "create_fma", create_fma)


def spoil(name: str, hits: Counter[str]) -> None:
    """Makes one kernel wrong, and counts how often it was met."""
    from triton.runtime import interpreter

    kernel, right, wrong = SPOILS[name]

    def spoilt(self: Any, lines: Any) -> str:
        source: str = prepare(self, lines)
        if self.fn.__name__ == kernel:
            if right not in source:
                raise AssertionError(f"{kernel} no longer reads {right!r}")
            hits[name] += 1
            source = source.replace(right, wrong)
        return source

    prepare = replace(interpreter.FunctionRewriter, "_prepare_source", spoilt)
