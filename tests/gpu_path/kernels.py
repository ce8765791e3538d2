"""Each Triton kernel of Unsloth that a Llama LoRA or QLoRA run can reach, and its neighbours, alone against torch.

Run as ``python -m tests.gpu_path.kernels out.json``: the largest relative difference of each check, forward and
gradients, and which kernels were launched. Sizes are odd, so that masked lanes count.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Unsloth patches what the others define, so it comes first.
import unsloth  # noqa: F401  # isort: skip

import bitsandbytes.functional as bnb
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from unsloth.kernels import (
    cross_entropy_loss,
    fused_add_rms_layernorm,
    geglu,
    layernorm,
    nf4_gemv,
    rms_layernorm,
    rope_embedding,
    swiglu,
    utils,
)

from tests.gpu_path import recording
from tests.gpu_path.emulation import on_card

DEVICE = "cuda" if on_card() else "cpu"
Function = Callable[..., Any]


def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Random numbers with a gradient."""
    return (torch.randn(*shape, device=DEVICE) * scale).requires_grad_()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    if not torch.isfinite(one).all():
        return math.inf  # `max` passes over what is not a number
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


def gradients(kernel: Function, plain: Function, *inputs: torch.Tensor) -> float:
    """Forward and gradients of two functions, for the same inputs and the same gradient of the output."""
    copies = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    one, other = kernel(*inputs), plain(*copies)
    incoming = torch.randn_like(other)
    one.backward(incoming)
    other.backward(incoming)
    pairs = [(one, other), *((mine.grad, copy.grad) for mine, copy in zip(inputs, copies, strict=True))]
    return max(apart(mine, copy) for mine, copy in pairs)


def rms(x: torch.Tensor, weight: torch.Tensor, gemma: bool = False) -> torch.Tensor:
    """RMSNorm as it is written."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    return normed * (1 + weight if gemma else weight)


def rms_norm(gemma: bool) -> float:
    """The kernel's RMSNorm."""

    def kernel(x: torch.Tensor, weight: torch.Tensor) -> Any:
        return rms_layernorm.Fast_RMS_Layernorm.apply(x, weight, 1e-5, gemma)

    return gradients(kernel, lambda x, weight: rms(x, weight, gemma), draw(7, 150), draw(150))


def added_rms_norm() -> float:
    """Residual and RMSNorm in one, as decoding has it."""
    x, residual, weight = (draw(*shape).detach() for shape in ((3, 1, 150), (3, 1, 150), (150,)))
    wanted = rms(x + residual, weight)
    return apart(fused_add_rms_layernorm.fast_add_rms_layernorm_inference(x.clone(), residual, weight, 1e-5), wanted)


def layer_norm() -> float:
    """The kernel's LayerNorm."""
    norm = torch.nn.LayerNorm(150, eps=1e-5, device=DEVICE)
    torch.nn.init.normal_(norm.weight)
    norm.variance_epsilon = norm.eps
    return gradients(lambda x: layernorm.fast_layernorm(norm, x), norm, draw(7, 150))


def rope(given_positions: bool) -> float:
    """Rotary embeddings of queries and keys that are unequal in number."""
    angles = torch.arange(20.0)[:, None] / 10000 ** (torch.arange(0, 24, 2) / 24)[None]
    table = torch.cat((angles, angles), -1).to(DEVICE)
    cos, sin = table.cos(), table.sin()
    positions = torch.randint(0, 20, (2, 7)) if given_positions else torch.arange(7).expand(2, 7)
    positions = positions.to(DEVICE)
    cos_at, sin_at = cos[positions][:, None], sin[positions][:, None]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return x * cos_at + torch.cat((-x[..., half:], x[..., :half]), -1) * sin_at

    def kernel(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        given = positions if given_positions else None
        return torch.cat(rope_embedding.fast_rope_embedding(q * 1, k * 1, cos, sin, given), 1)

    return gradients(kernel, lambda q, k: torch.cat((rotated(q), rotated(k)), 1), draw(2, 6, 7, 24), draw(2, 3, 7, 24))


def gated(forward: Function, backward: Function, activation: Function) -> float:
    """A gated MLP's activation; the backward kernel works in place of its three inputs."""
    gate, up, out = draw(1, 9, 150), draw(1, 9, 150), draw(9, 150).detach()
    hidden = activation(gate) * up
    worst = apart(forward(gate.detach(), up.detach()), hidden)
    hidden.backward(out[None])
    assert gate.grad is not None
    got = backward(out.clone(), gate.detach()[0].clone(), up.detach()[0].clone())
    wanted = (hidden.detach()[0], out * activation(gate.detach())[0], gate.grad[0])
    return max(worst, *(apart(one, other) for one, other in zip(got, wanted, strict=True)))


def cross_entropy(vocabulary: int, scale: float = 1.0) -> float:
    """Cross entropy with a masked label, beyond 65,536 entries in chunks."""
    labels = torch.tensor([[3, -100, vocabulary - 1, 0, vocabulary // 2]], device=DEVICE)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x[0], labels[0], ignore_index=-100, reduction="sum") / 4

    logits = draw(1, 5, vocabulary, scale=scale)
    return gradients(lambda x: cross_entropy_loss.fast_cross_entropy_loss(x, labels), plain, logits)


def nf4(dtype: torch.dtype, nested: bool) -> float:
    """Dequantization, which must equal bitsandbytes' own bit for bit."""
    quantized, state = bnb.quantize_4bit(draw(96, 192).detach().to(dtype), quant_type="nf4", compress_statistics=nested)
    return apart(utils.fast_dequantize(quantized, state), bnb.dequantize_4bit(quantized, state))


def gemv(dtype: torch.dtype, rows: int) -> float:
    """The 4-bit product of decoding."""
    nf4_gemv._FORCE_KERNEL = "words"
    nf4_gemv._gemv_config.cache_clear()
    weight = draw(96, 192).detach().to(dtype)
    quantized, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    x = draw(rows, 1, 192).detach().to(dtype)
    wanted = x.float() @ bnb.dequantize_4bit(quantized, state).float().t()
    return apart(
        utils.fast_gemv(x, quantized, state) if rows == 1 else utils._gemv_rows(x, quantized, state, None), wanted
    )


CHECKS: dict[str, Callable[[], float]] = {
    "RMSNorm": lambda: rms_norm(False),
    "RMSNorm of Gemma": lambda: rms_norm(True),
    "residual and RMSNorm": added_rms_norm,
    "LayerNorm": layer_norm,
    "RoPE with positions": lambda: rope(True),
    "RoPE without positions": lambda: rope(False),
    "SwiGLU": lambda: gated(swiglu.swiglu_fg_kernel, swiglu.swiglu_DWf_DW_dfg_kernel, F.silu),
    "GeGLU": lambda: gated(geglu.geglu_exact_forward_kernel, geglu.geglu_exact_backward_kernel, F.gelu),
    "cross entropy": lambda: cross_entropy(422),
    "cross entropy, confident": lambda: cross_entropy(422, scale=40.0),
    "cross entropy in chunks": lambda: cross_entropy(128256),
    "NF4 to float32": lambda: nf4(torch.float32, True),
    "NF4 to bfloat16": lambda: nf4(torch.bfloat16, True),
    "NF4 to float16": lambda: nf4(torch.float16, True),
    "NF4 to bfloat16, not nested": lambda: nf4(torch.bfloat16, False),
    "NF4 gemv, bfloat16": lambda: gemv(torch.bfloat16, 1),
    "NF4 gemv, float16, two rows": lambda: gemv(torch.float16, 2),
}


def main(out: str) -> int:
    """Runs all checks."""
    torch.manual_seed(0)
    np.seterr(all="ignore")  # masked lanes
    found = {}
    for name, check in CHECKS.items():
        recording.launches.clear()
        found[name] = {"apart": check(), "launches": dict(recording.launches)}
    Path(out).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
