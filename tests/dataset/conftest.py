"""Tiny tokenizers with real special tokens, and what Unsloth itself makes of chats."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from job.contract.config import Dataset, Recipe, Training
from job.dataset.prepared import Prepared
from job.dataset.preparing import prepare
from job.dataset.tokenizer import Tokenizer, load_tokenizer

DAY = date(2024, 7, 26)
_LLAMA_3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CORPUS = [
    "system\nuser\nassistant\nmodel\ntool\n",
    "### Instruction:\nSay hello.\n\n### Response:\nHello, how are you today?\n\n",
    "<|user|>\nWhat is it?</s>\n<|assistant|>\nIt is a question. [INST] And now? [/INST]",
    "Below are some instructions that describe some tasks. Cutting Knowledge Date: December 2023",
] * 4


@dataclass(frozen=True)
class Family:
    """The special tokens of a family of models; `~` before one says that it is not special, only never split."""

    bos: str | None
    eos: str
    tokens: tuple[str, ...]
    sentencepiece: bool = False


_PAD = "<|pad|>"
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN = (*_CHATML, "~<tool_call>", "~</tool_call>", "~<think>", "~</think>")
_LLAMA = tuple(
    f"<|{name}|>"
    for name in ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "python_tag")
)
FAMILIES = {
    "llama-3": Family("<|begin_of_text|>", "<|eot_id|>", _LLAMA),
    "llama-3-base": Family("<|begin_of_text|>", "<|end_of_text|>", _LLAMA),
    "chatml": Family(None, "<|im_end|>", _CHATML),
    "smollm": Family("<|im_start|>", "<|im_end|>", _CHATML),
    "qwen": Family(None, "<|im_end|>", _QWEN),
    "qwen-base": Family(None, "<|endoftext|>", _QWEN),
    "gemma": Family("<bos>", "<eos>", ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")),
    "mistral": Family("<s>", "</s>", ("<unk>", "<s>", "</s>"), sentencepiece=True),
    "phi-3": Family(
        "<s>", "<|endoftext|>", ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    ),
    "phi-4": Family("<|endoftext|>", "<|im_end|>", (*_CHATML, "<|im_sep|>")),
}
FAMILY_OF = {
    "alpaca": "llama-3-base",
    "chatml": "chatml",
    "gemma": "gemma",
    "gemma-3": "gemma",
    "llama-3": "llama-3",
    "llama-3.1": "llama-3",
    "mistral": "mistral",
    "phi-3": "phi-3",
    "phi-4": "phi-4",
    "qwen-2.5": "qwen",
    "qwen-3": "qwen",
    "zephyr": "mistral",
}
"""Each of our templates, and a family that it is for."""


def write_tokenizer(directory: Path, family: Family, chat_template: str | None = None) -> Path:
    """Train and save a tokenizer of some hundred tokens, as a base model's directory holds it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=family.sentencepiece))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if family.sentencepiece:  # as Llama 2's and Mistral's tokenizer.json have it
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        # Its pieces end at spaces and line breaks, though it has no pre-tokenizer once it is trained.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split("\n", "isolated")]
        )
        alphabet = [chr(code) for code in range(33, 127)]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_LLAMA_3_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
    bytes_kept = [f"<0x{byte:02X}>" for byte in range(256)] if family.sentencepiece else []
    specials = [
        AddedToken(token.lstrip("~"), special=not token.startswith("~"), normalized=False)
        for token in (_PAD, *family.tokens)  # Unsloth wants a token for padding alone
    ]
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=[token.content for token in specials] + bytes_kept,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    definition = json.loads(tokenizer.to_str())
    if family.sentencepiece:
        definition["pre_tokenizer"] = None
    definition["added_tokens"] = [
        token | {"special": specials[index].special}
        for index, token in enumerate(definition["added_tokens"][: len(specials)])
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": family.bos,
        "eos_token": family.eos,
        "pad_token": _PAD,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(config | ({"chat_template": chat_template} if chat_template else {}))
    )
    return directory


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family's tokenizer."""
    root = tmp_path_factory.mktemp("tokenizers")

    def directory(family: str) -> Path:
        path = root / family
        return path if path.exists() else write_tokenizer(path, FAMILIES[family])

    return directory


@pytest.fixture(scope="session")
def load(tokenizer_directory: Callable[[str], Path]) -> Callable[..., Tokenizer]:
    """`load(template)`: one of our templates on a tokenizer of its family, or of another one."""

    def load(template: str, family: str | None = None) -> Tokenizer:
        return load_tokenizer(tokenizer_directory(family or FAMILY_OF[template]), template, DAY)

    return load


@pytest.fixture(scope="session")
def chatml(load: Callable[..., Tokenizer]) -> Tokenizer:
    """ChatML on a tokenizer that has its tokens."""
    return load("chatml")


def recipe(max_seq_length: int = 512, training: dict[str, Any] | None = None, **dataset: Any) -> Recipe:
    """A recipe for `prepare`, by what differs from the defaults; a global batch is one row."""
    return Recipe(
        name="tests",
        base_model="unused",
        max_seq_length=max_seq_length,
        dataset=Dataset(train="unused", **dataset),
        training=Training(
            **{"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1} | (training or {})
        ),
    )


@pytest.fixture
def prepare_rows(chatml: Tokenizer, tmp_path: Path) -> Callable[..., Prepared]:
    """`prepare_rows(*files, max_bad_rows=…)`: the files prepared as train rows with ChatML, into `tmp_path`."""

    def prepare_rows(*files: Path, eval: Any = None, max_seq_length: int = 512, **settings: Any) -> Prepared:
        made = recipe(max_seq_length, settings.pop("training", None), **settings)
        return prepare(files, eval, made, chatml, tmp_path, name_of=lambda path: path.name)

    return prepare_rows


@dataclass(frozen=True)
class Answer:
    """What Unsloth and transformers make of one chat."""

    text: str | None
    """None where the template refuses it."""
    prompt: str | None
    """With the generation prompt."""
    ids: list[int]
    labels: list[int] | None
    """None where Unsloth does not find the turns of the template by itself."""


@pytest.fixture(scope="session")
def ask_unsloth(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]]], list[list[Answer]]]:
    """Asks the real Unsloth in a process of its own, which takes it half a minute to start.

    A question is a tokenizer's `directory`, a `template` (one of Unsloth's names, or null for the tokenizer's own) and
    `chats`, each with `messages` and perhaps `tools`.
    """
    home = tmp_path_factory.mktemp("unsloth")

    def ask(questions: list[dict[str, Any]]) -> list[list[Answer]]:
        environment = os.environ | {
            "HOME": str(home),
            "UNSLOTH_COMPILE_LOCATION": str(home / "compiled"),
            "UNSLOTH_FORCE_CPU": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        (home / "questions.json").write_text(json.dumps(questions))
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("unsloth_answers.py"), "questions.json", "answers.json"],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return [[Answer(**answer) for answer in answers] for answers in json.loads((home / "answers.json").read_text())]

    return ask
