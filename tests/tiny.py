"""A real model that is small enough to train within a test: two layers, random weights, SmolLM2's tokenizer."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from examples.demo.base_model import write_tokenizer
from job.contract.config import RunConfig
from job.contract.config_file import parse_config
from job.contract.plan import Plan
from job.dataset.tokenizer import load_tokenizer, messages_of
from job.scratch import Scratch

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCAB = 64, 2, 4, 2, 128, 49152


def make_tiny_model(directory: Path, seed: int = 7, scale: float = 0.08) -> Path:
    """Writes a base model's directory: config.json, model.safetensors in float32, tokenizer, generation config."""
    write_tokenizer(directory)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    draw = np.random.default_rng(seed)
    kv = HIDDEN * KV_HEADS // HEADS
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{block}.self_attn.k_proj.weight": (kv, HIDDEN),
            f"{block}.self_attn.v_proj.weight": (kv, HIDDEN),
            f"{block}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{block}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{block}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{block}.mlp.down_proj.weight": (HIDDEN, INNER),
            f"{block}.input_layernorm.weight": (HIDDEN,),
            f"{block}.post_attention_layernorm.weight": (HIDDEN,),
        }
    # Norms that are not all 1, so that an error in one shows.
    weights = {
        name: (scale * draw.standard_normal(shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def sums(count: int) -> list[dict[str, list[dict[str, str]]]]:
    """Rows of unequal length that a small model can learn."""
    names = ("Ada", "Bob", "Cleo", "Dan", "Eve")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{names[i % 5]} has {i} coins and finds {3 * i % 17} more."},
                {"role": "assistant", "content": f"{i + 3 * i % 17} coins." + " Counted twice." * (i % 3)},
            ]
        }
        for i in range(count)
    ]


def write_rows(path: Path, rows: list[tuple[list[int], list[int]]]) -> None:
    """Writes ids and labels as the dataset room does."""
    table = pa.table(
        {
            "input_ids": pa.array([ids for ids, _ in rows], pa.list_(pa.int32())),
            "labels": pa.array([labels for _, labels in rows], pa.list_(pa.int32())),
        }
    )
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)


def tiny_config(base: Path, training: dict[str, object], **keys: object) -> RunConfig:
    """A config for a CPU."""
    config = {
        "name": "tiny",
        "base_model": str(base),
        "max_seq_length": 128,
        "dtype": "float32",
        "load_in_4bit": False,
        "dataset": {"train": "rows.jsonl"},
        "lora": {"r": 8, "lora_alpha": 16},
        "training": {"learning_rate": 0.01, "warmup_steps": 1, **training},
        "export": {"gguf": []},
        "compute": {"gpus": 0},
        **keys,
    }
    return parse_config(json.dumps(config), "tiny.yaml")


def tiny_plan(scratch: Scratch, base: Path, config: RunConfig, rows: int = 48) -> Plan:
    """A plan on a scratch of its own, with rows that the model has never seen."""
    scratch.prepare()
    tokenizer = load_tokenizer(base, None, config.chat_template_date)
    write_tokenizer(scratch.tokenizer)
    masked = []
    for row in sums(rows):
        question, answer = row["messages"]
        prompt = tokenizer.encode(tokenizer.render([question], add_generation_prompt=True))
        reply = tokenizer.encode(f"{answer['content']}<|im_end|>")
        masked.append((prompt + reply, [-100] * len(prompt) + reply))
    write_rows(scratch.rows / "train.arrow", masked)
    write_rows(scratch.rows / "eval.arrow", masked[:5])
    prompts = config.samples.prompts
    return Plan(
        run_id="tiny-0123456789",
        recipe=config.recipe,
        gpus=0,
        base_model=str(base),
        tokenizer=str(scratch.tokenizer),
        stop_token_ids=tokenizer.stop_token_ids,
        sample_ids=tuple(
            tuple(tokenizer.encode(tokenizer.render(messages_of(text), add_generation_prompt=True))) for text in prompts
        ),
        train_rows=str(scratch.rows / "train.arrow"),
        eval_rows=str(scratch.rows / "eval.arrow"),
        checkpoints=str(scratch.checkpoints),
        adapter=str(scratch.adapter),
        merged=str(scratch.merged),
        gguf=str(scratch.gguf),
        report=str(scratch.report),
        trainer=str(scratch.trainer),
        llama_cpp="/opt/llama.cpp",
        events=str(scratch.events),
    )
