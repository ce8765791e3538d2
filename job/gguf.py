"""GGUF files: how they are called, what is checked before one is published, and the Modelfile beside them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from job.contract.config import Quantization
from job.contract.errors import DataError
from job.llama_cpp import FILE_TYPES, Model
from job.weights import read_header

_MAGIC = b"GGUF"
_ROWS = 16  # compared token by token
_PROMPT, _ANSWER = 32, 4  # tokens that each file is asked with, and answers with

Facts = dict[str, str | int | float]


@dataclass(frozen=True)
class Expected:
    """What every GGUF of a run must agree with."""

    blocks: int
    stop_token_ids: tuple[int, ...]
    """The tokens that end an answer, eos first."""
    chat_template: str
    chats: tuple[tuple[str, list[int]], ...]
    """Rendered rows, as text and as the tokenizer's ids."""


def expect(model: Path, tokenizer: Path, stop_token_ids: Sequence[int], rows: Path) -> Expected:
    """What a model's GGUF must agree with, from its config.json, its tokenizer and the rows that it is trained on.

    Args:
        model: its directory.
        tokenizer: its tokenizer's directory.
        stop_token_ids: the tokens that end an answer, eos first.
        rows: the Arrow stream of prepared rows.
    """
    config = json.loads((model / "config.json").read_bytes())
    ours = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    with pa.memory_map(str(rows)) as file, pa.ipc.open_stream(file) as stream:
        first: list[Any] = stream.read_next_batch().column("input_ids").slice(0, _ROWS).to_pylist()
    texts = [ours.decode(ids, skip_special_tokens=False) for ids in first]
    return Expected(
        blocks=config.get("text_config", config)["num_hidden_layers"],
        stop_token_ids=tuple(stop_token_ids),
        chat_template=(tokenizer / "chat_template.jinja").read_text("utf-8"),
        chats=tuple((text, ours.encode(text, add_special_tokens=False).ids) for text in texts),
    )


def check(path: Path, quantization: Quantization, tensors: int, expected: Expected) -> Facts:
    """What a GGUF is, once it is seen to load, to be what it should be, to tokenize as the tokenizer does, and to answer.

    Args:
        path: the file.
        quantization: its type.
        tensors: how many it must have: as many as the file that it was quantized from.
        expected: what else it must agree with.

    Raises:
        DataError: where it differs.
    """
    with Model(path) as model:
        architecture = model.metadata("general.architecture")
        found = {
            "file type": (model.metadata("general.file_type"), str(FILE_TYPES[quantization])),
            "blocks": (model.metadata(f"{architecture}.block_count"), str(expected.blocks)),
            "eos token": (model.metadata("tokenizer.ggml.eos_token_id"), str(expected.stop_token_ids[0])),
            "chat template": (model.metadata("tokenizer.chat_template"), expected.chat_template),
            "number of tensors": (tensor_count(path), tensors),
        }
        for what, (is_, should_be) in found.items():
            if is_ != should_be:
                raise _differs(path, f"its {what} is {_apart(is_, should_be)} and should be {_apart(should_be, is_)}")
        for token in {token for _, ids in expected.chats for token in ids} & set(expected.stop_token_ids):
            if not model.ends_an_answer(token):
                raise _differs(path, f"token {token} ends an answer in training, and llama.cpp does not stop at it")
        for text, ids in expected.chats:
            if (tokens := model.chat_tokens(text)) != ids:
                raise _differs(path, _where(tokens, ids, text))
        prompt = expected.chats[0][1][:_PROMPT]
        return {
            "architecture": architecture or "",
            "file_type": FILE_TYPES[quantization],
            "blocks": expected.blocks,
            "eos_token_id": expected.stop_token_ids[0],
            "tensors": tensors,
            "rows_compared": len(expected.chats),
            "answer": " ".join(map(str, model.answer(prompt, _ANSWER))),
        }


def check_lora(path: Path, adapter: Path) -> Facts:
    """What an adapter's GGUF is, once it is seen to have each of the adapter's matrices.

    Raises:
        DataError: it has others.
    """
    matrices = len(read_header(adapter / "adapter_model.safetensors"))
    if (count := tensor_count(path)) != matrices:
        raise _differs(path, f"it has {count} tensors, and the adapter {matrices}")
    return {"tensors": count}


def tensor_count(path: Path) -> int:
    """How many tensors a GGUF says it has: the 8 bytes after magic and version, little-endian.

    Raises:
        DataError: it is no GGUF.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if len(head) < 16 or not head.startswith(_MAGIC):
        raise DataError(f"{path.name} is not a GGUF")
    return int.from_bytes(head[8:], "little")


def _differs(path: Path, what: str) -> DataError:
    return DataError(
        f"{path.name} is not the model that was trained: {what}",
        "llama.cpp reads this base model's tokenizer or config otherwise than transformers does: take another base or chat_template, "
        "or leave export.gguf empty.",
    )


def _where(tokens: list[int], ids: list[int], text: str) -> str:
    """The first place where two tokenizations differ."""
    same = _same(tokens, ids)
    return (
        f"of the row {text[:80]!r}, token {same} on is {tokens[same : same + 4]} in llama.cpp "
        f"and {ids[same : same + 4]} in training"
    )


def _apart(value: object, other: object) -> str:
    """A value, from a little before the place where it differs from the other."""
    text = str(value)
    start = max(0, _same(text, str(other)) - 20)
    return repr(text[start : start + 60])


def _same(one: Sequence[object], other: Sequence[object]) -> int:
    """How many of the first elements are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def gguf_name(model_line: str, quantization: Quantization) -> str:
    """The file name of a quantization."""
    return f"{model_line}.{quantization.upper()}.gguf"


def lora_name(model_line: str) -> str:
    """The file name of an adapter's GGUF."""
    return f"{model_line}-lora.F16.gguf"


def modelfile(gguf: str, stops: Sequence[str], adapter: str | None = None) -> str:
    """A Modelfile for Ollama. It has no TEMPLATE: Ollama takes the one in the GGUF.

    Args:
        gguf: a file name beside it.
        stops: the texts that end an answer.
        adapter: the file name of a LoRA for that very GGUF.
    """
    lines = [f"FROM ./{gguf}"]
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops)]) + "\n"
