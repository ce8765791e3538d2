"""What a trained adapter answers and is merged to: on the GPU path, and in plain peft."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from job.contract.events import Sample
from job.scratch import Scratch
from tests.gpu_path.runs import LOGITS, answers, export, gpu_config, gpu_plan, train

PROMPTS = ["Ada has 3 coins and finds 4 more.", "How many coins?", "Cleo has 41 coins and finds 2 more. How many now?"]
SAMPLES = {"prompts": PROMPTS, "max_new_tokens": 12, "temperature": 0}


@pytest.mark.parametrize("four_bit", [False, True])
def test_the_adapter_answers_in_plain_peft_as_on_the_gpu_path(four_bit: bool, base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "run")
    config = gpu_config(base, four_bit=four_bit, training={"max_steps": 2}, samples=SAMPLES)
    plan = gpu_plan(scratch, base, config)
    trained = train(plan, scratch)
    plain, ours = answers("plain", plan, scratch), answers("product", plan, scratch)
    told = [event for event in trained.events if isinstance(event, Sample) and event.model == "tuned"]
    assert all(sample.answer and sample.error is None for sample in told)
    assert [sample.answer for sample in told] == ours.texts == plain.texts
    for number, logits in plain.logits.items():
        assert np.abs(ours.logits[number] - logits).max() <= LOGITS * np.abs(logits).max()


def test_a_4_bit_trained_adapter_is_merged_as_peft_does_it(base16: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "run")
    config = gpu_config(base16, "bfloat16", True, {"max_steps": 2}, export={"gguf": [], "merged": True})
    plan = gpu_plan(scratch, base16, config)
    train(plan, scratch)
    export(plan, scratch)
    merged = load_file(Path(plan.merged) / "model.safetensors")
    in_16_bits = plan.recipe.model_copy(update={"load_in_4bit": False})
    wanted = load_file(answers("plain", plan.model_copy(update={"recipe": in_16_bits}), scratch).merged)
    base = load_file(base16 / "model.safetensors")
    assert merged.keys() == wanted.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert len(changed) == 2 * 7
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        exact = wanted[name].float()
        # Half a unit in the last of bfloat16's 8 bits, and float32's own rounding.
        assert (tensor.float() - exact).abs().le(exact.abs() * (2**-8 + 1e-5) + 1e-7).all(), name
