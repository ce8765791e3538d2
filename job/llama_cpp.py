"""llama.cpp, of one pinned release: its converter as a process, its library to quantize with and to look through.

The library is the package `llama-cpp-python`; docker/llama-cpp.sh takes the converter from that package's sources.
"""

import ctypes
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
import numpy.typing as npt

from job.contract.config import Quantization
from job.contract.errors import ConfigError, DataError, KilledError, LocalIOError
from job.machine import read_machine

# `enum llama_ftype` in llama.h: what `general.file_type` of a GGUF says.
FILE_TYPES: dict[Quantization, int] = {
    "f32": 0,
    "f16": 1,
    "q8_0": 7,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
    "bf16": 32,
}
CONVERTED: tuple[Quantization, ...] = ("f32", "f16", "bf16")
"""What the converter writes; the others are quantized from one of these."""

_INHERITED = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_NO_SPACE = "No space left on device"
_WARNING = 3  # `enum ggml_log_level`; above it is only ERROR
_CONTINUES = 5


def assert_one_release(directory: Path) -> None:
    """Refuse a converter that is not there, or of another release than the library.

    Raises:
        ConfigError: which of the two it is.
    """
    version = directory / "VERSION"
    if not version.is_file():
        raise ConfigError(f"there is no llama.cpp in {directory}", "Run `make llama-cpp` and name what it prints.")
    if (converter := version.read_text().strip()) != llama_cpp.__version__:
        raise ConfigError(
            f"the converter in {directory} is of llama-cpp-python {converter}, the library of {llama_cpp.__version__}",
            "Run `make llama-cpp` again.",
        )


def convert(model: Path, out: Path, outtype: Quantization, name: str, directory: Path) -> None:
    """Writes a model's safetensors and tokenizer as one GGUF; `outtype` is one of `CONVERTED`.

    Raises:
        DataError: llama.cpp cannot convert this model, with its own last words.
        LocalIOError: the disk is full.
        KilledError: the converter was killed, mostly for memory.
    """
    _run(
        directory,
        "convert_hf_to_gguf.py",
        str(model),
        f"--outfile={out}",
        f"--outtype={outtype}",
        f"--model-name={name}",
    )


def convert_lora(adapter: Path, base: Path, out: Path, outtype: Quantization, directory: Path) -> None:
    """Writes an adapter as GGUF; of the base only config and tokenizer are read. Raises as `convert`."""
    _run(
        directory, "convert_lora_to_gguf.py", str(adapter), f"--base={base}", f"--outfile={out}", f"--outtype={outtype}"
    )


def _run(directory: Path, script: str, *arguments: str) -> None:
    variables = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # Weights are moved, not computed with: the GPU stays free.
    variables |= {**_OFFLINE, "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(directory / script), *arguments],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    words = done.stdout.strip().splitlines()[-1:] or ["it said nothing"]
    error: Exception
    if done.returncode < 0:
        error = KilledError(f"{script} was killed", "Raise compute.memory_gib.", -done.returncode)
    elif _NO_SPACE in done.stdout:
        error = LocalIOError(f"{script}: {words[0]}", "Raise compute.scratch_gib.")
    else:
        error = DataError(
            f"llama.cpp cannot convert this model: {words[0]}",
            "Take a base model that llama.cpp knows, or leave export.gguf and export.lora_gguf empty.",
        )
    error.add_note(done.stdout[-20_000:])
    raise error


def quantize(source: Path, out: Path, quantization: Quantization) -> None:
    """Writes a GGUF of 16 or 32 bits anew with fewer.

    Raises:
        DataError: llama.cpp cannot quantize it, with its own last words.
        LocalIOError: the disk is full.
    """
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[quantization]
    parameters.nthread = read_machine().usable_cpus
    said = _listen()
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(parameters)):
        words = "; ".join(said)
        if "iostream error" in words:  # the library's word for a write that failed
            raise LocalIOError(f"{out.name} cannot be written: {words}", "Raise compute.scratch_gib.")
        raise DataError(f"llama.cpp cannot quantize to {quantization}: {words}", "Leave it out of export.gguf.")


class Model:
    """A GGUF, loaded as whoever uses it will: by libllama, here on the CPU.

    Args:
        path: the file.
        context: how many tokens it can be asked with, at most.

    Raises:
        DataError: libllama refuses the file, with its own last words. It checks the architecture, that each tensor which
            that needs is there with the right shape and no other one is, and that none reaches beyond the file.
    """

    def __init__(self, path: Path, context: int = 256) -> None:
        said = _listen()
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        if not self._model:
            raise DataError(f"libllama cannot load {path.name}: {'; '.join(said)}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
        parameters.n_threads = parameters.n_threads_batch = read_machine().usable_cpus
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise DataError(f"libllama cannot work with {path.name}: {'; '.join(said)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def metadata(self, key: str) -> str | None:
        """A value of the file's header as text, None where it has no such key."""

        def ask(size: int) -> tuple[int, Any]:
            buffer = ctypes.create_string_buffer(size)
            return llama_cpp.llama_model_meta_val_str(self._model, key.encode(), buffer, size), buffer

        length, _ = ask(1)
        return None if length < 0 else ask(length + 1)[1].value.decode()

    def ends_an_answer(self, token: int) -> bool:
        """Whether generation stops at this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def chat_tokens(self, rendered: str) -> list[int]:
        """What llama.cpp makes of a rendered chat.

        A BOS that it adds itself is taken off the text first, as its `common_chat_templates_apply` does.
        """
        if llama_cpp.llama_vocab_get_add_bos(self._vocab):
            bos = llama_cpp.llama_vocab_bos(self._vocab)
            rendered = rendered.removeprefix(llama_cpp.llama_vocab_get_text(self._vocab, bos).decode())
        text = rendered.encode()
        room = len(text) + 2
        tokens = (llama_cpp.llama_token * room)()
        add_special = parse_special = True
        count = llama_cpp.llama_tokenize(self._vocab, text, len(text), tokens, room, add_special, parse_special)
        return list(tokens[:count])

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """How likely the model thinks each token of its vocabulary to follow these, unnormalised."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if failed := llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise DataError(f"libllama cannot compute with this GGUF: llama_decode gives {failed}")
        found = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (llama_cpp.llama_vocab_n_tokens(self._vocab),)).copy()

    def answer(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after the other.

        Raises:
            DataError: for logits that are not numbers.
        """
        answer: list[int] = []
        while len(answer) < count:
            logits = self.logits([*tokens, *answer])
            if not np.isfinite(logits).all():
                raise DataError("libllama computes what is not a number from this GGUF")
            answer.append(int(logits.argmax()))
        return answer


_said: deque[str] = deque(maxlen=6)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _hear(level: int, text: bytes, _: object) -> None:
    if _WARNING < level < _CONTINUES:
        _said.append(text.decode(errors="replace").strip())


def _listen() -> deque[str]:
    """From now on, the errors that the library tells; it prints nothing."""
    _said.clear()
    llama_cpp.llama_log_set(_hear, ctypes.c_void_p(0))
    return _said
