"""Logits, greedy answers and a merge, of an adapter on its base.

Run as ``python -m tests.gpu_path.answers BACKEND plan.json adapter out``. `plain` is transformers and peft, on a 4-bit
plan with weights that were rounded to nf4 and back: bitsandbytes' own inference computes in bfloat16 on some CPUs.
`product` loads as our export does, on the GPU path. Leaves in `out`: logits.safetensors, answers.json, and of `plain`
on a 16-bit base merged.safetensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

if sys.argv[1] == "product":
    import unsloth  # noqa: F401

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from job.contract.plan import Plan


def product(plan: Plan, adapter: str) -> Any:
    """The model as the export child loads it."""
    from job.export import load

    return load(adapter, plan)


def plain(plan: Plan, adapter: str) -> Any:
    """The model in float32 by transformers and peft."""
    model = AutoModelForCausalLM.from_pretrained(plan.base_model, dtype=torch.float32)
    if plan.recipe.load_in_4bit:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        for name, module in model.named_modules():
            if name.rpartition(".")[2] in plan.recipe.lora.target_modules:
                quantized = quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
                module.weight.data = dequantize_4bit(*quantized)
    return PeftModel.from_pretrained(model, adapter)


def main(backend: str, plan_path: str, adapter: str, out: str) -> int:
    """Leaves the files named above."""
    plan = Plan.model_validate_json(Path(plan_path).read_bytes())
    model = (product if backend == "product" else plain)(plan, adapter)
    model.eval()
    prompts = [torch.tensor([ids], device=model.device) for ids in plan.sample_ids]
    tokenizer = AutoTokenizer.from_pretrained(plan.tokenizer)
    with torch.no_grad():
        logits = {str(number): model(input_ids=ids).logits[0].float().cpu() for number, ids in enumerate(prompts)}
        answers = [answer(model, tokenizer, ids, plan) for ids in prompts]
    save_file({name: tensor.contiguous() for name, tensor in logits.items()}, f"{out}/logits.safetensors")
    Path(out, "answers.json").write_text(json.dumps(answers))
    if backend == "plain" and not plan.recipe.load_in_4bit:
        merged = {name: tensor.contiguous() for name, tensor in model.merge_and_unload().state_dict().items()}
        merged.pop("lm_head.weight", None)  # tied
        save_file(merged, f"{out}/merged.safetensors")
    return 0


def answer(model: Any, tokenizer: Any, ids: torch.Tensor, plan: Plan) -> str:
    """The greedy answer to one prompt."""
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=plan.recipe.samples.max_new_tokens,
        do_sample=False,
        eos_token_id=list(plan.stop_token_ids),
        pad_token_id=tokenizer.pad_token_id,
    )
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
