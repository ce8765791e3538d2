"""The runs that several tests look at. Each is a process of its own, and takes up to a minute and a half."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from examples.cache import making
from job.scratch import Scratch
from tests.gpu_path.runs import ROOT, Distance, Trained, gpu_config, gpu_plan, reference, train
from tests.tiny import make_tiny_model

Places = pytest.TempPathFactory


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, Distance]]:
    """How far runs were apart, by what was compared; kept in build/gpu-path.json."""
    file = ROOT / "build" / "gpu-path.json"
    found: dict[str, Distance] = {}
    yield found
    with making(file):
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {name: asdict(apart) for name, apart in found.items()}, indent=2) + "\n")


@pytest.fixture(scope="session")
def base(tmp_path_factory: Places) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("gpu") / "base")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: Places) -> Path:
    """The one directory that all workers of this session see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(scratch: Scratch, make: Callable[[], Trained]) -> Trained:
    """A run that the first worker makes that wants it; the other one waits for it."""
    kept = scratch.root.with_suffix(".pickle")
    with making(kept):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(make()))
    trained: Trained = pickle.loads(kept.read_bytes())
    return trained


@pytest.fixture(scope="session")
def lora_scratch(shared: Path) -> Scratch:
    return Scratch(shared / "lora")


@pytest.fixture(scope="session")
def lora(base: Path, lora_scratch: Scratch) -> Trained:
    """LoRA in float32, with a checkpoint in the middle."""
    config = gpu_config(base, training={"save_steps": 3})
    return made_once(lora_scratch, lambda: train(gpu_plan(lora_scratch, base, config), lora_scratch))


@pytest.fixture(scope="session")
def plain_lora(base: Path, shared: Path) -> Trained:
    """The same by plain transformers and peft."""
    scratch = Scratch(shared / "plain_lora")
    return made_once(scratch, lambda: reference(gpu_plan(scratch, base, gpu_config(base)), scratch))


@pytest.fixture(scope="session")
def qlora_scratch(tmp_path_factory: Places) -> Scratch:
    return Scratch(tmp_path_factory.mktemp("qlora"))


@pytest.fixture(scope="session")
def qlora(base: Path, qlora_scratch: Scratch) -> Trained:
    """QLoRA in float32."""
    return train(
        gpu_plan(qlora_scratch, base, gpu_config(base, four_bit=True, training={"max_steps": 3})), qlora_scratch
    )


@pytest.fixture(scope="session")
def plain_qlora(base: Path, tmp_path_factory: Places) -> Trained:
    """The same by plain transformers and peft."""
    scratch = Scratch(tmp_path_factory.mktemp("plain_qlora"))
    return reference(gpu_plan(scratch, base, gpu_config(base, four_bit=True, training={"max_steps": 3})), scratch)
