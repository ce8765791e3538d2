"""Our training child on Unsloth's GPU path, against plain transformers and peft."""

from pathlib import Path

import pytest

from job.contract.events import Saved
from job.scratch import Scratch
from tests.gpu_path.emulation import on_card
from tests.gpu_path.runs import ADAPTER, LOSS, STEPS, Distance, Trained, distance, gpu_config, gpu_plan, loaded, train
from tests.tiny import LAYERS


def test_lora_equals_plain_peft(lora: Trained, plain_lora: Trained, figures: dict[str, Distance]) -> None:
    figures["LoRA, float32"] = apart = distance(lora, plain_lora)
    assert apart.within(LOSS, ADAPTER), apart


def test_qlora_equals_plain_peft(qlora: Trained, plain_qlora: Trained, figures: dict[str, Distance]) -> None:
    figures["QLoRA, float32"] = apart = distance(qlora, plain_qlora)
    assert apart.within(LOSS, ADAPTER), apart


def test_projections_are_4_bit_where_asked(lora: Trained, qlora: Trained) -> None:
    assert (loaded(lora).linear_4bit, loaded(qlora).linear_4bit) == (0, 7 * LAYERS)


@pytest.mark.skipif(on_card(), reason="compiled kernels are not counted")
def test_each_kernel_is_launched_as_often_as_layers_batches_and_recomputation_ask(
    lora: Trained, qlora: Trained
) -> None:
    assert lora.launches == launches(2 * STEPS)
    dequantized = 7 * LAYERS * 3  # forward, recomputed, and backward
    assert qlora.launches == launches(2 * 3) | {"_nf4_dequant_kernel": 2 * 3 * dequantized}


def launches(micro_batches: int) -> dict[str, int]:
    """Launches of a LoRA run. Gradient checkpointing runs each layer's forward twice."""
    per_batch = {
        "_rms_layernorm_forward": 2 * 2 * LAYERS + 1,  # the last norm stands outside of the layers
        "_rms_layernorm_backward": 2 * LAYERS + 1,
        "_rope_embedding_QK": 3 * LAYERS,  # forward, recomputed, and backward
        "_fg_kernel": 2 * LAYERS,
        "_DWf_DW_dfg_kernel": LAYERS,
        "attention BlockDiagonalCausalMask": 2 * LAYERS,  # rows side by side, without padding
    }
    return {name: micro_batches * count for name, count in per_batch.items()}


def test_three_and_three_resumed_steps_are_six_straight_ones_bit_for_bit(
    lora: Trained, lora_scratch: Scratch, base: Path, tmp_path: Path
) -> None:
    [saved] = [event for event in lora.events if isinstance(event, Saved)]
    assert (saved.step, Path(saved.directory).parent) == (3, lora_scratch.checkpoints)
    scratch = Scratch(tmp_path / "resumed")
    plan = gpu_plan(scratch, base, gpu_config(base)).model_copy(update={"resume_from": saved.directory})
    resumed = train(plan, scratch)
    assert (resumed.losses, resumed.grad_norms) == (lora.losses[3:], lora.grad_norms[3:])
    assert resumed.batches == lora.batches[6:]
    assert adapter_bytes(scratch) == adapter_bytes(lora_scratch)


def adapter_bytes(scratch: Scratch) -> bytes:
    return (scratch.adapter / "adapter_model.safetensors").read_bytes()
