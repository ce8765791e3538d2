"""Training runs of the product on the GPU path and of the reference, and how far they are apart."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from job.children import export_command, run_child, train_command
from job.contract.config import RunConfig
from job.contract.events import Event, Loaded, Step
from job.contract.model import canonical_bytes
from job.contract.plan import Plan
from job.dataset.preparing import prepare
from job.dataset.tokenizer import load_tokenizer
from job.environment import environment
from job.scratch import Scratch
from tests.gpu_path.emulation import CARD, on_card
from tests.tiny import sums, tiny_config, tiny_plan

ROOT = Path(__file__).parents[2]
STEPS = 6

LOSS, ADAPTER, LOGITS = (1e-5, 1e-4, 1e-5) if not on_card() else (1e-3, 1e-2, 1e-3)
"""The largest relative differences in float32. A card's are provisional until one has met them."""


@dataclass(frozen=True)
class Trained:
    """A run that has ended."""

    losses: list[float]
    grad_norms: list[float]
    batches: list[str]
    """A hash of each micro batch's ids and labels, in order; of several ranks by turns."""
    adapter: dict[str, NDArray[np.float32]]
    launches: dict[str, int]
    """Of each kernel; empty on a card and for the reference."""
    hits: dict[str, int]
    """How often a spoilt kernel was met."""
    events: list[Event]
    start: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """The adapter before the first step; of the reference only."""


def gpu_config(
    base: Path,
    dtype: str = "float32",
    four_bit: bool = False,
    training: Mapping[str, object] = MappingProxyType({}),
    gpus: int = 1,
    **keys: object,
) -> RunConfig:
    """A config for GPUs: rows of unequal length, batches of two, accumulated twice."""
    small: dict[str, object] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 2e-3,
        "optim": "adamw_torch",
    }
    return tiny_config(base, small | dict(training), dtype=dtype, load_in_4bit=four_bit, compute={"gpus": gpus}, **keys)


def gpu_plan(scratch: Scratch, base: Path, config: RunConfig) -> Plan:
    """The plan, with the rows that `job.dataset` makes of `chats.jsonl`."""
    plan = tiny_plan(scratch, base, config)
    chats = scratch.dataset / "chats.jsonl"
    chats.parent.mkdir(parents=True, exist_ok=True)
    chats.write_text("".join(json.dumps(row) + "\n" for row in sums(48)))
    tokenizer = load_tokenizer(base, None, config.chat_template_date)
    prepare([chats], None, config.recipe, tokenizer, scratch.rows, gpus=config.compute.gpus)
    return plan.model_copy(update={"gpus": config.compute.gpus, "eval_rows": None})


def emulated(dtype: str) -> dict[str, str]:
    """The variables that put the emulation at a child's start; on a card, what observes it alone."""
    card = os.environ.get(CARD)
    return {
        "PYTHONPATH": f"{ROOT}/tests/gpu_path/site:{ROOT}",
        "GPU_PATH_DTYPE": dtype,
        **({CARD: card} if card else {}),
    }


def variables_of(plan: Plan, scratch: Scratch) -> dict[str, str]:
    """The child's variables."""
    own = environment(scratch.home, scratch.report, Path(plan.llama_cpp), plan.gpus, 1, (), os.environ)
    return own | emulated(plan.recipe.dtype)


def run_plain(module: str, arguments: Sequence[str], variables: Mapping[str, str], directory: Path) -> None:
    """A module of this folder as a process, to its end."""
    command = [sys.executable, "-m", f"tests.gpu_path.{module}", *arguments]
    done = subprocess.run(command, env=variables, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def run_ours(command: Sequence[str], plan: Plan, scratch: Scratch, **own: str) -> list[Event]:
    """One of the product's children, as the supervisor starts it, to its end; what it told."""
    scratch.plan.write_bytes(canonical_bytes(plan))
    events: list[Event] = []
    said: list[str] = []
    try:
        run_child(command, variables_of(plan, scratch) | own, scratch.work, scratch.events, events.append, said.append)
    except Exception as error:
        error.add_note("\n".join(said[-60:]))
        raise
    return events


def train(plan: Plan, scratch: Scratch, **own: str) -> Trained:
    """The training child, to its end."""
    record = scratch.root / "record"
    own["GPU_PATH_RECORD"] = str(record)
    events = run_ours(train_command(scratch.plan, plan.gpus), plan, scratch, **own)
    steps = [event for event in events if isinstance(event, Step)]
    recorded = [json.loads(Path(f"{record}.{rank}.json").read_text()) for rank in range(plan.gpus)]
    return Trained(
        losses=[step.loss for step in steps],
        grad_norms=[step.grad_norm or math.nan for step in steps],
        batches=by_turns([each["batches"] for each in recorded], len(steps), plan),
        adapter=load_file(scratch.adapter / "adapter_model.safetensors"),
        launches=recorded[0]["launches"],
        hits=recorded[0]["hits"],
        events=events,
    )


def by_turns(of_ranks: list[list[str]], steps: int, plan: Plan) -> list[str]:
    """The micro batches of all ranks in the order of their turns; a loader also fetches one that is never used."""
    used = steps * plan.recipe.training.gradient_accumulation_steps
    return [batch for turn in zip(*(batches[:used] for batches in of_ranks), strict=True) for batch in turn]


def export(plan: Plan, scratch: Scratch) -> None:
    """The export child, to its end."""
    run_ours(export_command(scratch.plan), plan, scratch)


@dataclass(frozen=True)
class Answers:
    """What a model made of `plan.sample_ids`."""

    texts: list[str]
    """Greedy."""
    logits: dict[str, NDArray[np.float32]]
    """Of each prompt: tokens by vocabulary."""
    merged: Path
    """By plain peft on a 16-bit plan: the merged weights, in float32."""


def answers(backend: Literal["plain", "product"], plan: Plan, scratch: Scratch) -> Answers:
    """Asks the trained adapter, in plain peft or loaded as our export loads it."""
    out = scratch.root / backend
    out.mkdir()
    scratch.plan.write_bytes(canonical_bytes(plan))
    variables = variables_of(plan, scratch) | (plain_variables() if backend == "plain" else {})
    run_plain("answers", [backend, str(scratch.plan), plan.adapter, str(out)], variables, scratch.work)
    texts = json.loads((out / "answers.json").read_text())
    return Answers(texts, load_file(out / "logits.safetensors"), out / "merged.safetensors")


def reference(plan: Plan, scratch: Scratch) -> Trained:
    """The same training by plain transformers and peft."""
    out = scratch.root / "reference"
    out.mkdir()
    scratch.plan.write_bytes(canonical_bytes(plan))
    variables = variables_of(plan, scratch) | plain_variables()
    run_plain("reference", [str(scratch.plan), str(scratch.dataset / "chats.jsonl"), str(out)], variables, scratch.work)
    record: dict[str, Any] = json.loads((out / "record.json").read_text())
    record["batches"] = by_turns([record["batches"]], len(record["losses"]), plan)
    start, adapter = (load_file(out / name / "adapter_model.safetensors") for name in ("start", "adapter"))
    return Trained(**record, adapter=adapter, launches={}, hits={}, events=[], start=start)


def plain_variables() -> dict[str, str]:
    """No emulation, and one card at most: transformers' trainer would spread its batches over several."""
    return {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0" if on_card() else ""}


@dataclass(frozen=True)
class Distance:
    """How far two runs are apart: relative, the largest over all steps."""

    loss: float
    grad_norm: float
    adapter: float
    """The norm of the adapters' difference, over that of what training changed."""
    same_batches: bool

    def within(self, losses: float, adapter: float) -> bool:
        """Whether the runs are the same up to rounding."""
        return self.same_batches and max(self.loss, self.grad_norm) <= losses and self.adapter <= adapter


def distance(one: Trained, other: Trained, start: dict[str, NDArray[np.float32]] | None = None) -> Distance:
    """How far `one` is from `other`. Both began with the adapter `start`, by default the other's own."""
    start = start or other.start
    names = other.adapter.keys()
    same_names = one.adapter.keys() == names
    apart = _norm([one.adapter[name] - other.adapter[name] for name in names]) if same_names else math.inf
    update = _norm([other.adapter[name] - start[name] for name in names])
    return Distance(
        loss=_relative(one.losses, other.losses),
        grad_norm=_relative(one.grad_norms, other.grad_norms),
        adapter=apart / update,
        same_batches=one.batches == other.batches,
    )


def _norm(tensors: list[NDArray[np.float32]]) -> float:
    return math.sqrt(sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in tensors))


def _relative(ones: list[float], others: list[float]) -> float:
    if len(ones) != len(others) or not all(map(math.isfinite, [*ones, *others])):
        return math.inf
    return max(abs(one - other) / abs(other) for one, other in zip(ones, others, strict=True))


def loaded(trained: Trained) -> Loaded:
    """What the child told of the model."""
    [event] = [event for event in trained.events if isinstance(event, Loaded)]
    return event
