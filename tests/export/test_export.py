"""The export child, as the supervisor starts it, on a tiny real model."""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import llama_cpp as library
import numpy as np
import pytest
from safetensors.numpy import load_file

from job.contract.errors import BugError, DataError
from job.contract.events import Exporting
from job.contract.plan import Plan
from job.gguf import gguf_name
from job.llama_cpp import Model, convert
from job.scratch import Scratch
from tests.export.conftest import ALL, Done, export, write_adapter
from tests.tiny import LAYERS, VOCAB

POSITIONS = 240
CLEAR = 0.02  # a margin between the two likeliest tokens that 16-bit arithmetic cannot turn round


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return [int(token) for token in np.random.default_rng(5).integers(17, VOCAB, POSITIONS)]


def logits_by_transformers(model: Path, ids: list[int], tmp_path: Path) -> np.ndarray:
    """The logits after each position, computed in float32."""
    code = (
        "import sys, json, numpy, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "with torch.no_grad():\n"
        "    numpy.save(sys.argv[2], model(torch.tensor([json.loads(sys.argv[3])])).logits[0].numpy())\n"
    )
    out = tmp_path / "logits.npy"
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code, model, out, json.dumps(ids)], check=True, env=variables)
    logits: np.ndarray = np.load(out)
    return logits


def test_every_file_has_its_name_and_nothing_else_is_left(done: Done) -> None:
    names = {f"tiny.{quantization.upper()}.gguf" for quantization in ALL} | {"tiny-lora.F16.gguf"}
    assert {path.name for path in done.gguf.iterdir()} == names | {"Modelfile", "Modelfile.lora"}
    assert {event.file for event in done.exported("gguf")} == names
    for event in done.exported("gguf"):
        assert event.size == (done.gguf / event.file).stat().st_size
    steps = [(event.step, event.of) for event in done.events if isinstance(event, Exporting)]
    assert steps == [(step, 2 + len(ALL)) for step in range(1, 3 + len(ALL))]
    assert list(Path(done.plan.trainer).iterdir()) == []


@pytest.mark.parametrize("quantization", ALL)
def test_each_quantization_loads_and_answers(done: Done, quantization: str) -> None:
    with Model(done.gguf / gguf_name("tiny", quantization)) as model:  # type: ignore[arg-type]
        answer = model.answer(model.chat_tokens("<|im_start|>user\nHow many coins?<|im_end|>\n"), 5)
    assert len(answer) == 5
    assert all(0 <= token < VOCAB for token in answer)


def test_f16_predicts_what_the_merged_model_predicts(done: Done, ids: list[int], tmp_path: Path) -> None:
    theirs = logits_by_transformers(Path(done.plan.merged), ids, tmp_path)
    with Model(done.gguf / "tiny.F16.gguf") as model:
        ours = np.array([model.logits(ids[: place + 1]) for place in range(POSITIONS)])
    best = np.sort(theirs, axis=1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > CLEAR
    assert clear.sum() >= 200
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1))[clear].all()


def test_the_adapter_on_the_base_is_the_merged_model(done: Done, ids: list[int], tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    convert(Path(done.plan.base_model), base, "f32", "base", Path(done.plan.llama_cpp))
    with Model(done.gguf / "tiny.F32.gguf") as model:
        merged = model.logits(ids)
    with Model(base) as model:
        plain = model.logits(ids)
        adapter = library.llama_adapter_lora_init(model._model, os.fsencode(done.gguf / "tiny-lora.F16.gguf"))
        assert adapter
        adapters, scales = (library.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
        assert library.llama_set_adapters_lora(model._context, adapters, 1, scales) == 0
        adapted = model.logits(ids)
    assert np.abs(adapted - merged).max() < 0.02 * np.abs(plain - merged).max()


def test_the_merged_model_is_the_base_but_for_what_the_adapter_targets(done: Done) -> None:
    before = load_file(Path(done.plan.base_model) / "model.safetensors")
    after = load_file(Path(done.plan.merged) / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {np.dtype(np.float16)}
    changed = {name for name in before if not np.array_equal(before[name].astype(np.float16), after[name])}
    assert len(changed) == 7 * LAYERS
    assert all("_proj" in name for name in changed)
    [facts] = {json.dumps(event.facts) for event in done.exported("merged")}
    assert json.loads(facts) == {"tensors": len(after), "changed": len(changed)}


def test_the_merged_model_has_the_tokenizer_byte_by_byte_and_ends_its_answers(done: Done) -> None:
    for file in Path(done.plan.tokenizer).iterdir():
        assert (Path(done.plan.merged) / file.name).read_bytes() == file.read_bytes()
    generation = json.loads((Path(done.plan.merged) / "generation_config.json").read_bytes())
    assert generation["eos_token_id"] == list(done.plan.stop_token_ids)
    assert json.loads((Path(done.plan.merged) / "config.json").read_bytes())["use_cache"] is True


def test_the_modelfiles_name_files_that_are_there(done: Done) -> None:
    line = re.compile(r'FROM \./\S+\.gguf|ADAPTER \./\S+\.gguf|PARAMETER stop "[^"\n]+"')
    for name, expected in (
        ("Modelfile", ["FROM ./tiny.Q4_K_M.gguf", 'PARAMETER stop "<|im_end|>"']),
        ("Modelfile.lora", ["FROM ./base.gguf", "ADAPTER ./tiny-lora.F16.gguf", 'PARAMETER stop "<|im_end|>"']),
    ):
        lines = (done.gguf / name).read_text().splitlines()
        assert lines == expected
        assert all(line.fullmatch(each) for each in lines)


def test_an_adapter_that_changes_nothing_is_refused(plan: Plan, tmp_path: Path) -> None:
    write_adapter(plan, scale=0)
    with pytest.raises(BugError, match="the merged model is the base: none of its 20 tensors changed"):
        export(plan, Scratch(tmp_path))
    assert not Path(plan.merged).exists()


def test_a_model_that_llama_cpp_does_not_know_is_refused_before_training(plan: Plan, tmp_path: Path) -> None:
    path = Path(plan.tokenizer) / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    path.write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(DataError, match=r"cannot convert this model: .*pre-tokenizer was not recognized"):
        export(plan, Scratch(tmp_path), "--check")
    assert list(Path(plan.trainer).iterdir()) == [], "nothing is left of it"
    assert not Path(plan.gguf).exists()
