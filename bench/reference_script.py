"""The reference run as a person would write it from the course material: one plain script, nothing of this project.

Run as ``python bench/reference_script.py BASE ROWS OUT LLAMA_CPP STEPS`` in the environment of `job/environment.py`.
Leaves OUT/record.json: losses, a hash of the rows' ids and labels, seconds by part.
"""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

began = time.monotonic()
from unsloth import FastLanguageModel  # isort: skip
from unsloth.chat_templates import standardize_sharegpt, train_on_responses_only

import torch
from datasets import load_dataset
from transformers import TextStreamer
from trl import SFTConfig, SFTTrainer

base, rows, out, llama_cpp = map(Path, sys.argv[1:5])
steps = int(sys.argv[5])
seconds = {"import": time.monotonic() - began}
began = time.monotonic()

model, tokenizer = FastLanguageModel.from_pretrained(
    str(base), max_seq_length=256, dtype=None, load_in_4bit=False, use_exact_model_name=True
)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    lora_alpha=16,
    lora_dropout=0,
    bias="none",
    use_gradient_checkpointing="unsloth",
    random_state=42,
)
dataset = standardize_sharegpt(load_dataset("json", data_files=str(rows), split="train"))
dataset = dataset.rename_column("conversations", "messages")
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=dataset,
    args=SFTConfig(
        output_dir=str(out / "trainer"),
        max_length=256,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        warmup_steps=5,
        max_steps=steps,
        learning_rate=2e-4,
        logging_steps=1,
        optim="adamw_torch_fused",
        weight_decay=0.01,
        lr_scheduler_type="linear",
        seed=42,
        data_seed=42,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
)
trainer = train_on_responses_only(trainer)
rows_sha256 = hashlib.sha256(
    json.dumps([(row["input_ids"], row["labels"]) for row in trainer.train_dataset]).encode()
).hexdigest()
seconds["load"] = time.monotonic() - began


def sample() -> None:
    FastLanguageModel.for_inference(model)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Continue the fibonnaci sequence: 1, 1, 2, 3, 5, 8,"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(42)
        model.generate(
            **inputs, streamer=TextStreamer(tokenizer), max_new_tokens=128, temperature=1.5, min_p=0.1, do_sample=True
        )
    FastLanguageModel.for_training(model)


began = time.monotonic()
sample()
seconds["sample before"] = time.monotonic() - began

began = time.monotonic()
trainer.train()
seconds["train"] = time.monotonic() - began

began = time.monotonic()
sample()
model.save_pretrained(out / "adapter")
tokenizer.save_pretrained(out / "adapter")
seconds["sample and save"] = time.monotonic() - began

began = time.monotonic()
model.save_pretrained_merged(str(out / "merged"), tokenizer, save_method="merged_16bit")
seconds["merge"] = time.monotonic() - began

began = time.monotonic()
converter = [str(llama_cpp / "convert_hf_to_gguf.py"), "--outtype", "f16", "--outfile", str(out / "model.F16.gguf")]
subprocess.run([sys.executable, *converter, str(out / "merged")], check=True)
seconds["convert"] = time.monotonic() - began

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
record = {"losses": losses, "rows_sha256": rows_sha256, "seconds": seconds}
(out / "record.json").write_text(json.dumps(record))
