"""What is checked of a GGUF before it is published: each fault is planted and found."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import files
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from job.contract.errors import ConfigError, DataError, LocalIOError
from job.gguf import Expected, check, expect, tensor_count
from job.llama_cpp import Model, assert_one_release, convert, quantize
from tests.export.conftest import Done

U32, BOOL = 4, 7  # `enum gguf_type`
TENSORS = 20


@pytest.fixture(scope="module")
def expected(done: Done) -> Expected:
    plan = done.plan
    return expect(Path(plan.merged), Path(plan.tokenizer), plan.stop_token_ids, Path(plan.train_rows))


@pytest.fixture(scope="module")
def model(done: Done) -> Iterator[Model]:
    with Model(done.gguf / "tiny.F16.gguf") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def backend(done: Done) -> Tokenizer:
    return Tokenizer.from_file(f"{done.plan.tokenizer}/tokenizer.json")


def spoil(done: Done, tmp_path: Path, key: str, kind: int, value: int) -> Path:
    """The f16 GGUF with another value for a key."""
    body = bytearray((done.gguf / "tiny.F16.gguf").read_bytes())
    found = key.encode() + kind.to_bytes(4, "little")
    assert body.count(found) == 1
    place = body.index(found) + len(found)
    size = {U32: 4, BOOL: 1}[kind]
    body[place : place + size] = value.to_bytes(size, "little")
    path = tmp_path / "spoiled.gguf"
    path.write_bytes(body)
    return path


def test_a_good_one_passes_and_is_described(done: Done, expected: Expected) -> None:
    facts = check(done.gguf / "tiny.F16.gguf", "f16", TENSORS, expected)
    assert (facts["architecture"], facts["blocks"], facts["eos_token_id"]) == ("llama", 2, 2)
    assert facts["rows_compared"] == len(expected.chats) == 16


def test_a_spoiled_chat_template_is_refused(done: Done, expected: Expected, tmp_path: Path) -> None:
    path = tmp_path / "spoiled.gguf"
    path.write_bytes(
        (done.gguf / "tiny.F16.gguf").read_bytes().replace(b"assistant named SmolLM", b"assistant named SmolLN")
    )
    with pytest.raises(DataError, match=r"chat template is .*SmolLN.* and should be .*SmolLM"):
        check(path, "f16", TENSORS, expected)


def test_another_eos_is_refused(done: Done, expected: Expected, tmp_path: Path) -> None:
    path = spoil(done, tmp_path, "tokenizer.ggml.eos_token_id", U32, 5)
    with pytest.raises(DataError, match="eos token is '5' and should be '2'"):
        check(path, "f16", TENSORS, expected)


def test_a_bos_that_the_rows_do_not_have_is_refused(done: Done, expected: Expected, tmp_path: Path) -> None:
    spoil(done, tmp_path, "tokenizer.ggml.bos_token_id", U32, 0).rename(tmp_path / "tiny.F16.gguf")
    half = Done(done.plan.model_copy(update={"gguf": str(tmp_path)}), done.events)
    path = spoil(half, tmp_path, "tokenizer.ggml.add_bos_token", BOOL, 1)
    with pytest.raises(DataError, match=r"token 0 on is \[0, 1, .* in llama.cpp and \[1, "):
        check(path, "f16", TENSORS, expected)


def test_a_stop_token_that_does_not_stop_is_refused(done: Done, expected: Expected, tmp_path: Path) -> None:
    path = spoil(done, tmp_path, "tokenizer.ggml.eos_token_id", U32, 100)
    # Besides eos, llama.cpp knows the tokens that end an answer by their names.
    path.write_bytes(path.read_bytes().replace(b"<|im_end|>", b"<|im_fin|>"))
    template = expected.chat_template.replace("<|im_end|>", "<|im_fin|>")
    with pytest.raises(DataError, match=r"token 2 ends an answer in training, and llama\.cpp does not stop at it"):
        check(path, "f16", TENSORS, replace(expected, stop_token_ids=(100, 2), chat_template=template))


def test_another_type_and_another_count_are_refused(done: Done, expected: Expected) -> None:
    with pytest.raises(DataError, match="file type is '15' and should be '7'"):
        check(done.gguf / "tiny.Q4_K_M.gguf", "q8_0", TENSORS, expected)
    with pytest.raises(DataError, match="number of tensors is '20' and should be '19'"):
        check(done.gguf / "tiny.F16.gguf", "f16", TENSORS - 1, expected)


def test_a_file_that_is_cut_off_is_refused(done: Done, expected: Expected, tmp_path: Path) -> None:
    whole = (done.gguf / "tiny.F16.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match=r"cannot load cut\.gguf: .*not within the file bounds"):
        check(path, "f16", TENSORS, expected)
    path.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="is not a GGUF"):
        tensor_count(path)


def test_an_unknown_architecture_is_refused_with_the_converters_words(done: Done, tmp_path: Path) -> None:
    config = json.loads((Path(done.plan.base_model) / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    with pytest.raises(DataError, match="Model NoSuchForCausalLM is not supported"):
        convert(tmp_path, tmp_path / "x.gguf", "f16", "x", Path(done.plan.llama_cpp))


def test_a_full_disk_is_told_as_one(done: Done) -> None:
    full = Path("/dev/full")
    with pytest.raises(LocalIOError, match="No space left on device"):
        convert(Path(done.plan.base_model), full, "f16", "x", Path(done.plan.llama_cpp))
    with pytest.raises(LocalIOError, match="iostream error"):
        quantize(done.gguf / "tiny.F16.gguf", full, "q8_0")


def test_what_is_quantized_already_is_not_quantized_again(done: Done, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="requantizing from type q5_0 is disabled"):
        quantize(done.gguf / "tiny.Q4_K_M.gguf", tmp_path / "x.gguf", "q8_0")


def test_the_library_is_there_alone_and_once() -> None:
    """As pyproject.toml tells llama.cpp's CMake files: no programs, and no copies under versioned names."""
    there = sorted(file.name for file in files("llama_cpp_python") or () if ".so" in file.name)
    assert there == ["libggml-base.so", "libggml-cpu.so", "libggml.so", "libllama.so"]


def test_converter_and_library_are_of_one_release(done: Done, tmp_path: Path) -> None:
    assert_one_release(Path(done.plan.llama_cpp))
    with pytest.raises(ConfigError, match=r"there is no llama\.cpp in"):
        assert_one_release(tmp_path)
    (tmp_path / "VERSION").write_text("0.3.1\n")
    with pytest.raises(ConfigError, match=r"is of llama-cpp-python 0\.3\.1, the library of"):
        assert_one_release(tmp_path)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn", "Co"))))
def test_llama_cpp_tokenizes_any_text_as_the_tokenizer_does(model: Model, backend: Tokenizer, text: str) -> None:
    chat = f"<|im_start|>user\n{text}<|im_end|>\n"
    ids = backend.encode(chat, add_special_tokens=False).ids
    assume(
        backend.decode(ids, skip_special_tokens=False) == chat
    )  # what the vocabulary lacks is dropped, by each its way
    assert model.chat_tokens(chat) == ids
