"""Unsloth's GPU path on a machine without a GPU: its Triton kernels run in Triton's interpreter, on CPU tensors.

`prepare` comes before every import of the training stack (`site/sitecustomize.py` calls it), and hooks the import of
unsloth: when that has run, the patches below are made. They touch torch, transformers, triton and unsloth, never
`job`. All names are private to the pinned versions; `replace` names the one that an upgrade has moved. What this shows
and what it cannot is in docs/gpu.md.
"""

import os
import sys
import types
from typing import Any

from tests.gpu_path import recording
from tests.gpu_path.replacing import replace
from tests.importing import around_import

CARD = "FINETUNE_TEST_GPU"
"""Set: the same tests run on this machine's GPU, and nothing is emulated."""


def on_card() -> bool:
    """Whether a real GPU is meant."""
    return bool(os.environ.get(CARD))


def prepare() -> None:
    """The environment of the emulated path, and a hook for its patches."""
    if not on_card():
        os.environ |= {
            "TRITON_INTERPRET": "1",  # read when @triton.jit decorates a kernel
            "UNSLOTH_ALLOW_CPU": "1",  # Unsloth's own switch: its device is "cuda", though there is none
            "UNSLOTH_DISABLE_CPU_FALLBACK": "0",
            "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_USE_CPU": "true",  # gloo between ranks
            "TORCHDYNAMO_DISABLE": "1",  # eager is the semantics; Inductor's C++ is not what a GPU runs
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else its import starts processes that compile
            "UNSLOTH_DISABLE_PINNED_MEMORY": "1",  # needs a driver
        }
    around_import("unsloth", after=_after, before=_before)


def _before() -> None:
    if not on_card():
        _imaginary_card()


def _after() -> None:
    recording.install()
    if not on_card():
        _install()
    if os.environ.get("GPU_PATH_DTYPE") == "float32":
        _without_bfloat16()
    if os.environ.get("GPU_PATH_SPOIL") == "accumulation":
        _spoil_accumulation()


def _imaginary_card() -> None:
    """An sm_80 card, for launch settings and messages. Unsloth aliases these at import, so they come before it."""
    import torch

    properties = types.SimpleNamespace(
        name="emulated", total_memory=24 << 30, major=8, minor=0, multi_processor_count=108
    )
    replace(torch.cuda, "get_device_properties", lambda *_, **__: properties)
    replace(torch.cuda, "current_device", lambda: None)  # what cpu_tensor.device.index is


def _without_bfloat16() -> None:
    """A card without bfloat16. On any other Unsloth trains a float32 model under bfloat16 autocast."""
    from unsloth_zoo import device_type

    replace(device_type, "device_is_bf16_supported", lambda *_, **__: False)


def _install() -> None:
    import torch
    import triton
    from transformers import training_args
    from unsloth import trainer
    from unsloth.kernels import cross_entropy_loss
    from unsloth.kernels import utils as kernels
    from unsloth.models import _utils, llama, loader, rl
    from unsloth.utils import attention_dispatch
    from unsloth_zoo import device_type, saving_utils

    from tests.gpu_path import interpreter

    interpreter.faster()
    interpreter.count_launches(recording.launches)
    spoil = os.environ.get("GPU_PATH_SPOIL")
    if spoil in interpreter.SPOILS:
        interpreter.spoil(spoil, recording.hits)
    if os.environ.get("GPU_PATH_DTYPE") == "bfloat16":
        interpreter.bfloat16_arithmetic()
        replace(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        replace(device_type, "device_is_bf16_supported", lambda *_, **__: True)
        replace(training_args, "is_torch_bf16_gpu_available", lambda: True)
        aliases = [
            module
            for name, module in sys.modules.items()
            if name.startswith("unsloth") and "SUPPORTS_BFLOAT16" in vars(module)
        ]
        for module in (_utils, *aliases):  # asked at import, and copied about
            replace(module, "SUPPORTS_BFLOAT16", True)

    # Placement: the one device is the CPU, with one slot for RoPE tables and decode scratch.
    replace(loader, "prepare_device_map", lambda: ({"": "cpu"}, True))
    replace(llama, "DEVICE_COUNT", 1)
    replace(llama, "DEVICE_TYPE_TORCH", "cpu")
    replace(llama, "get_current_device", lambda: _Device0("cpu:0"))

    # xformers has CUDA kernels only. Unsloth's choice of it, its masks and head layout run unchanged around this.
    replace(attention_dispatch, "xformers_attention", _attention)

    # Unsloth keeps its fused LoRA matmuls and SwiGLU for 16-bit bases. In float32 a comparison is tight: so take them.
    replace(llama, "_base_weight_dtype", lambda *_, **__: torch.float16)

    # The interpreter rebinds the functions of triton.language, not an alias that was taken at import.
    replace(cross_entropy_loss, "triton_cast", lambda *given, **named: triton.language.cast(*given, **named))

    # 4-bit: the current stream is always the default one, and bitsandbytes quantizes in its CPU code. Without the
    # second, Unsloth prints one line and loads 16 bits.
    replace(kernels, "_can_use_scratch", lambda device: True)
    replace(loader, "ALLOW_BITSANDBYTES", True)

    # The merge computes on the device.
    replace(saving_utils, "_active_merge_device", lambda *_, **__: "cpu")
    replace(saving_utils, "DEVICE_TYPE_TORCH", "cpu")

    # UNSLOTH_ALLOW_CPU skips the generated trainer, which is what users run.
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    rl.PatchFastRL()
    trainer._patch_trl_trainer()
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"


def _spoil_accumulation() -> None:
    """Hides from the loss how many tokens a step is trained on, so that each micro batch counts the same."""
    from unsloth.models import _utils

    def without_count(*given: Any, **named: Any) -> tuple[Any, None]:
        recording.hits["accumulation"] += 1
        batches, _ = counted(*given, **named)
        return batches, None

    counted = replace(_utils, "_unsloth_get_batch_samples", without_count)


class _Device0(str):
    """Index 0 of the imaginary card: a list index, and a device that torch knows."""

    def __index__(self) -> int:
        return 0


def _attention(
    q: Any, k: Any, v: Any, attn_bias: Any = None, p: float = 0.0, scale: float | None = None, **_: Any
) -> Any:
    """`xformers.ops.memory_efficient_attention` by its definition, from xformers' own mask."""
    recording.launches[f"attention {type(attn_bias).__name__}"] += 1
    # [batch, sequence, (groups,) heads, dim] -> [batch, (groups,) heads, sequence, dim]
    queries, keys, values = (tensor.movedim(1, -2) for tensor in (q, k, v))
    scores = queries @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_bias is not None:
        if hasattr(attn_bias, "materialize"):
            attn_bias = attn_bias.materialize((q.shape[1], k.shape[1]), q.dtype, q.device)
        scores = scores + attn_bias
    return (scores.float().softmax(-1).to(q.dtype) @ values).movedim(-2, 1)
