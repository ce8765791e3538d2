"""The pinned llama.cpp, a tiny model with an adapter, and one export of it that several tests look at."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from job.children import export_command, run_child
from job.contract.events import Event, Exported
from job.contract.model import canonical_bytes
from job.contract.plan import Plan
from job.environment import environment
from job.scratch import Scratch
from tests.tiny import HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, make_tiny_model, tiny_config, tiny_plan

ROOT = Path(__file__).parents[2]
ALL = ("q4_k_m", "f16", "q8_0", "bf16", "q5_k_m", "f32", "q6_k")
RANK = 8
KV = HIDDEN * KV_HEADS // HEADS
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}

Export = Callable[..., list[Event]]


def write_adapter(plan: Plan, scale: float = 0.1) -> None:
    """Writes an adapter as training leaves it, with numbers drawn at random; a scale of 0 changes nothing."""
    directory = Path(plan.adapter)
    shutil.copytree(plan.tokenizer, directory)
    draw = np.random.default_rng(3)
    weights = {}
    for layer in range(LAYERS):
        for name, (outputs, inputs) in PROJECTIONS.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{path}.lora_A.weight"] = draw.normal(0, 0.1, (RANK, inputs)).astype(np.float32)
            weights[f"{path}.lora_B.weight"] = draw.normal(0, scale, (outputs, RANK)).astype(np.float32)
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": plan.base_model,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0,
        "bias": "none",
        "target_modules": [name.rpartition(".")[2] for name in PROJECTIONS],
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


def export(plan: Plan, scratch: Scratch, *flags: str) -> list[Event]:
    """Runs the child to its end, as the supervisor does but without any network; its events, in order."""
    scratch.plan.write_bytes(canonical_bytes(plan))
    variables = environment(scratch.home, scratch.report, Path(plan.llama_cpp), plan.gpus, 2, (), os.environ)
    variables["PYTHONPATH"] = str(ROOT)
    events: list[Event] = []
    command = [*without_network(), *export_command(scratch.plan, *flags)]
    run_child(command, variables, scratch.work, scratch.events, events.append, lambda _: None)
    return events


def without_network() -> list[str]:
    """What is put before a command so that it has no network device, not even a loopback that is up."""
    return ["unshare", "--user", "--map-root-user", "--net", "--"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def plan(base: Path, llama_cpp: Path, tmp_path: Path) -> Plan:
    """A plan that asks for a GGUF of 16 bits, without an adapter yet."""
    config = tiny_config(base, {"max_steps": 1}, export={"gguf": ["f16"]})
    return tiny_plan(Scratch(tmp_path), base, config).model_copy(update={"llama_cpp": str(llama_cpp)})


@dataclass(frozen=True)
class Done:
    """An export that went well."""

    plan: Plan
    events: list[Event]

    @property
    def gguf(self) -> Path:
        return Path(self.plan.gguf)

    def exported(self, kind: str) -> list[Exported]:
        return [event for event in self.events if isinstance(event, Exported) and event.kind == kind]


@pytest.fixture(scope="session")
def done(base: Path, llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Everything that can be asked for, made at once."""
    scratch = Scratch(tmp_path_factory.mktemp("export"))
    config = tiny_config(base, {"max_steps": 1}, export={"gguf": list(ALL), "lora_gguf": True, "merged": True})
    plan = tiny_plan(scratch, base, config).model_copy(update={"llama_cpp": str(llama_cpp)})
    write_adapter(plan)
    return Done(plan, export(plan, scratch))
