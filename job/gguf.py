"""GGUF files: made by the pinned llama.cpp, and opened, compared and made to answer before anyone gets them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from gguf import GGUFReader, LlamaFileType

from job.contract.config import Quantization
from job.contract.errors import BugError, DataError

# What the converter writes itself; everything else the quantizer makes of one of these.
CONVERTED: tuple[Quantization, ...] = ("f32", "f16", "bf16")

_FILE_TYPES: dict[Quantization, LlamaFileType] = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
}
_CONTEXT = 512  # tokens; enough for a check
_GENERATED = 8  # tokens
_LAST_WORDS = 6  # lines of the converter's output that a failure is told with


@dataclass(frozen=True)
class Expected:
    """What a GGUF must hold to be the model that was trained."""

    block_count: int
    stop_token_ids: tuple[int, ...]
    chat_template: str
    tokenizer: tokenizers.Tokenizer
    bos_token: str | None
    texts: Sequence[str]
    """Rendered rows, to compare tokens on."""


def file_name(name: str, quantization: Quantization) -> str:
    """How a GGUF is called: `support-bot.Q4_K_M.gguf`."""
    return f"{name}.{quantization.upper()}.gguf"


def convert(model: Path, file: Path, quantization: Quantization, llama_cpp: Path) -> None:
    """Writes a model directory as GGUF, by the pinned converter.

    Raises:
        DataError: when it cannot be converted, with the converter's own last words.
    """
    flags = ["--outtype", quantization, "--outfile", str(file), str(model)]
    _run([str(llama_cpp / "convert_hf_to_gguf.py"), *flags], f"the model cannot be converted to GGUF {quantization}")


def convert_lora(adapter: Path, base: Path, file: Path, llama_cpp: Path) -> None:
    """Writes an adapter as GGUF, for `llama-server --lora` and Ollama's `ADAPTER`.

    Raises:
        DataError: when it cannot be converted.
    """
    flags = ["--outtype", "f16", "--outfile", str(file), "--base", str(base), str(adapter)]
    _run([str(llama_cpp / "convert_lora_to_gguf.py"), *flags], "the adapter cannot be converted to GGUF")


def _run(command: list[str], failure: str) -> None:
    # The archive's own gguf-py must win over an installed gguf: converter and library are of one release.
    variables = {**os.environ, "PYTHONPATH": str(Path(command[0]).with_name("gguf-py")), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "\n".join(done.stdout.splitlines()[-_LAST_WORDS:])
        raise DataError(
            f"{failure}. The converter said last:\n{said}",
            "This llama.cpp does not know the base model's architecture or tokenizer: set export.gguf: [] and deliver "
            "the adapter or the merged model.",
        )


def quantize(source: Path, file: Path, quantization: Quantization) -> None:
    """Quantizes a 16 or 32-bit GGUF, by libllama.

    Raises:
        DataError: when libllama refuses.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(_FILE_TYPES[quantization])
    parameters.nthread = len(os.sched_getaffinity(0))
    if code := llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(file), parameters):
        raise DataError(f"libllama cannot quantize to {quantization} (code {code})", "Take it out of export.gguf.")


def check(file: Path, quantization: Quantization, expected: Expected) -> dict[str, str | int | float]:
    """Opens a GGUF, compares it with what was trained, and lets it generate.

    Returns:
        What was found, for the log.

    Raises:
        BugError: naming what differs.
    """
    reader = GGUFReader(file)

    def field(name: str) -> Any:
        found = reader.fields.get(name)
        return found.contents() if found else None

    architecture = field("general.architecture")
    facts = {
        "file type": (field("general.file_type"), int(_FILE_TYPES[quantization])),
        "block count": (field(f"{architecture}.block_count"), expected.block_count),
        "chat template": (field("tokenizer.chat_template"), expected.chat_template),
        "end of answer": (field("tokenizer.ggml.eos_token_id") in expected.stop_token_ids, True),
        "tensors": (len(reader.tensors) > 9 * expected.block_count // 2, True),
    }
    for name, (found, wanted) in facts.items():
        if found != wanted:
            raise BugError(f"{file.name}: its {name} is {str(found)[:200]!r} and must be {str(wanted)[:200]!r}")
    generated = _try_out(file, expected)
    return {
        "architecture": str(architecture),
        "tensors": len(reader.tensors),
        "rows_compared": len(expected.texts),
        "generated": generated,
    }


def _try_out(file: Path, expected: Expected) -> str:
    """Tokenizes rows and generates, by libllama."""
    from llama_cpp import Llama

    llama = Llama(str(file), n_ctx=_CONTEXT, n_threads=len(os.sched_getaffinity(0)), verbose=False)
    try:
        for text in expected.texts:
            wanted = expected.tokenizer.encode(text, add_special_tokens=False).ids
            # A reader that renders the template has the BOS in its text; libllama must not add a second one.
            has_bos = bool(expected.bos_token and text.startswith(expected.bos_token))
            body = text.removeprefix(expected.bos_token or "") if has_bos else text
            found = llama.tokenize(body.encode(), add_bos=has_bos, special=True)
            if found != wanted:
                place = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), 0)
                raise BugError(
                    f"{file.name} tokenizes otherwise than the tokenizer that the model was trained with: at token {place} "
                    f"of {text[:80]!r} it has {found[place : place + 3]} for {wanted[place : place + 3]}"
                )
        prompt = expected.tokenizer.encode(expected.texts[0], add_special_tokens=False).ids[: _CONTEXT // 2]
        answer = llama.create_completion(prompt, max_tokens=_GENERATED, temperature=0)
        return str(answer["choices"][0]["text"])
    finally:
        llama.close()


def check_lora(file: Path) -> dict[str, str | int | float]:
    """Opens an adapter's GGUF.

    Raises:
        BugError: when it is none.
    """
    reader = GGUFReader(file)
    kinds = [reader.fields[name].contents() for name in ("general.type", "adapter.type") if name in reader.fields]
    if kinds != ["adapter", "lora"] or not reader.tensors:
        raise BugError(f"{file.name} is no LoRA adapter: {kinds}")
    return {"tensors": len(reader.tensors)}


def modelfile(gguf: Sequence[str], lora: str | None, base_model: str, stops: Sequence[str]) -> str:
    """An Ollama Modelfile: the first GGUF, or the base with the adapter. The GGUF itself carries the chat template."""
    lines = [f"FROM ./{gguf[0]}"] if gguf else [f"# Put the base model's GGUF here: {base_model}", "FROM ./base.gguf"]
    lines += [f"# Also here: {', '.join(gguf[1:])}"] if gguf[1:] else []
    lines += [f"ADAPTER ./{lora}"] if lora and not gguf else []
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"
