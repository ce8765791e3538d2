"""The same training by plain transformers and peft, from the chats and the plan: nothing of Unsloth, nothing of ours.

Run as ``python -m tests.gpu_path.reference plan.json chats.jsonl out``. Rows are rendered and masked here, by
transformers' own tokenizer, so that batches, order and masks of `job.dataset` are part of the comparison.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from tests.gpu_path import recording
from tests.gpu_path.emulation import on_card


def row(messages: list[dict[str, str]], tokenizer: Any) -> dict[str, list[int]]:
    """Ids and labels of an answer to a question: what follows the assistant's header is trained on, with its eos."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    assert whole[: len(prompt)] == prompt
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)  # the line break after it is the template's
    labels = [-100] * len(prompt) + whole[len(prompt) : end] + [-100] * (len(whole) - end)
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels}


def load(plan: dict[str, Any]) -> Any:
    """The base with an adapter of the plan's shape."""
    recipe, lora = plan["recipe"], plan["recipe"]["lora"]
    dtype = getattr(torch, recipe["dtype"])
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        plan["base_model"], dtype=dtype, quantization_config=quantized if recipe["load_in_4bit"] else None
    )
    config = LoraConfig(
        r=lora["r"], lora_alpha=lora["lora_alpha"], target_modules=lora["target_modules"], task_type="CAUSAL_LM"
    )
    # Adapters are float32 whatever the base is, as in Unsloth.
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def main(plan_path: str, chats_path: str, out: str) -> int:
    """Leaves in `out` the adapter before (`start`) and after, and record.json."""
    plan = json.loads(Path(plan_path).read_text())
    recipe, training = plan["recipe"], plan["recipe"]["training"]
    tokenizer = AutoTokenizer.from_pretrained(plan["tokenizer"])
    chats = [json.loads(line) for line in Path(chats_path).read_text().splitlines()]
    model = load(plan)
    recording.start_adapter(model)
    model.save_pretrained(f"{out}/start")
    recording.record_batches(recording.batches.append)
    trainer = Trainer(
        model=model,
        train_dataset=[row(chat["messages"], tokenizer) for chat in chats],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100),
        args=TrainingArguments(
            output_dir=f"{out}/trainer",
            per_device_train_batch_size=training["per_device_train_batch_size"],
            gradient_accumulation_steps=training["gradient_accumulation_steps"],
            max_steps=training["max_steps"],
            learning_rate=training["learning_rate"],
            lr_scheduler_type=training["lr_scheduler_type"],
            warmup_steps=training["warmup_steps"],
            weight_decay=training["weight_decay"],
            max_grad_norm=training["max_grad_norm"],
            optim=training["optim"],
            seed=training["seed"],
            data_seed=training["seed"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not on_card(),
            bf16=recipe["dtype"] == "bfloat16",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    model.save_pretrained(f"{out}/adapter")
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    told = {
        "losses": [entry["loss"] for entry in steps],
        "grad_norms": [float(entry["grad_norm"]) for entry in steps],
        "batches": recording.batches,
    }
    Path(out, "record.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
