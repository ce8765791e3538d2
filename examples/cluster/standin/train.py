"""The training child's stand-in: keeps its contract and trains nothing. `job/train.py` in the stand-in image.

Checkpoints, stops and resumes go as the real one's: the same directories of the same files, at the same moments. The
adapter depends on every step that was taken, so a run that was interrupted has the bytes of one that was not, or fails.

A config tells it what to do by its sample prompts: `stand-in: seconds 0.5` for each step, and before the second one
`exit 79`, `signal 9`, `allocate` (memory without end), `fill 100` (MiB on scratch), or `lines 1000` to print. Only
`seconds` counts after a resume: so `exit 71` beside `save_steps: 1` fails once, and without checkpoints each time.
"""

import hashlib
import json
import os
import shutil
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from job.contract.documents import TrainSummary
from job.contract.errors import ERROR_BY_CODE, InterruptedRun
from job.contract.events import Loaded, Saved, Step, Trained, Training, Versions
from job.contract.plan import Plan
from job.telling import Teller, run_child

_ORDER = "stand-in: "
_ADVICE = {79: "Lower training.per_device_train_batch_size to 1."}  # as the real one says which key to lower
_TOKENS_SEEN, _TOKENS_TRAINED = 100, 50  # in a step
_TENSORS = ("optimizer.pt", "scheduler.pt", "rng_state.pth")  # what the real one loads by torch


@dataclass(frozen=True)
class State:
    """What training has come to: all that a checkpoint keeps, and all that the next step depends on."""

    global_step: int = 0
    sha256: str = ""
    """Of every step up to here."""

    def next(self, seed: int) -> "State":
        """One step further."""
        step = self.global_step + 1
        return State(step, hashlib.sha256(f"{self.sha256} {seed} {step}".encode()).hexdigest())


def train(plan: Plan, teller: Teller) -> None:
    """Steps, and an adapter of one small matrix.

    Raises:
        InterruptedRun: it was asked to stop, and has left a checkpoint.
        JobError: as it was told to.
    """
    training = plan.recipe.training
    orders = dict(orders_of(plan))
    steps = training.max_steps or 10
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    teller.tell(Versions(versions={"stand-in": "1"}))
    teller.tell(
        Loaded(
            trainable_parameters=8,
            total_parameters=8,
            dtype="float32",
            linear_4bit=0,
            device="stand-in",
            memory_bytes=0,
            effective_batch=batch,
        )
    )
    seconds = float(orders.pop("seconds", 0))
    state = State()
    if plan.resume_from:
        state = State(**json.loads(Path(plan.resume_from, "trainer_state.json").read_bytes()))
        orders.clear()
    teller.tell(Training(step=state.global_step, of=steps))
    saved = time.monotonic()
    while state.global_step < steps:
        if state.global_step + 1 == min(2, steps):
            obey(orders)
        time.sleep(seconds)
        state = state.next(training.seed)
        step = state.global_step
        teller.tell(
            Step(
                step=step,
                of=steps,
                loss=round(2.0 / step, 6),
                learning_rate=training.learning_rate,
                grad_norm=1.0,
                tokens_per_second=100.0,
                eta_seconds=seconds * (steps - step),
            )
        )
        asked = bool(plan.stop and Path(plan.stop).exists())
        due = asked or step % (training.save_steps or steps) == 0 or time.monotonic() - saved >= training.save_seconds
        if due and step < steps:
            saved = time.monotonic()
            teller.tell(Saved(step=step, directory=str(write_checkpoint(plan, state, seconds))))
        if asked and step < steps:
            raise InterruptedRun(f"training was stopped after step {step} of {steps}")
    written = Path(plan.adapter).with_name(".adapter")
    write_adapter(written, plan, state)
    written.rename(plan.adapter)
    teller.tell(
        Trained(
            summary=TrainSummary(
                steps=steps,
                train_loss=2.0 / steps,
                eval_loss=None,
                tokens_seen=_TOKENS_SEEN * steps,
                tokens_trained=_TOKENS_TRAINED * steps,
                trainable_parameters=8,
                total_parameters=8,
                effective_batch=batch,
                seconds=seconds * steps,
                device="stand-in",
                dtype="float32",
                peak_memory_bytes=0,
                memory_after_load_bytes=0,
            )
        )
    )


def orders_of(plan: Plan) -> list[tuple[str, str]]:
    """What the config's prompts tell."""
    told = [prompt.removeprefix(_ORDER) for prompt in plan.recipe.samples.prompts if prompt.startswith(_ORDER)]
    return [(word, rest) for word, _, rest in (order.partition(" ") for order in told)]


def obey(orders: dict[str, str]) -> None:
    """What is to happen before the second step."""
    for number in range(int(orders.get("lines", 0))):
        print(f"line {number:06d}", flush=True)
    if "fill" in orders:
        Path("filled").write_bytes(bytes(int(orders["fill"]) << 20))
    if "exit" in orders:
        code = int(orders["exit"])
        if error := ERROR_BY_CODE.get(code):
            raise error(f"the stand-in was told to end with {code}", _ADVICE.get(code, ""))
        os._exit(code)
    if "signal" in orders:
        os.kill(os.getpid(), signal.Signals(int(orders["signal"])))
    held = []
    while "allocate" in orders:
        held.append(bytearray(os.urandom(1 << 20) * 16))


def write_checkpoint(plan: Plan, state: State, seconds: float) -> Path:
    """The directory that training can be gone on from; whole once its name is there."""
    step = state.global_step
    written = Path(plan.trainer) / f"checkpoint-{step}"
    final = Path(plan.checkpoints) / f"step-{step:06d}"
    write_adapter(written, plan, state)
    for name in _TENSORS:
        (written / name).write_bytes(name.encode())
    (written / "trainer_state.json").write_text(json.dumps(asdict(state)))
    measured = {
        "tokens_seen": _TOKENS_SEEN * step,
        "tokens_trained": _TOKENS_TRAINED * step,
        "seconds": seconds * step,
    }
    (written / "measured.json").write_text(json.dumps(measured))
    return written.rename(final)


def write_adapter(directory: Path, plan: Plan, state: State) -> None:
    """An adapter as far as whoever publishes it looks, and the tokenizer."""
    shutil.copytree(plan.tokenizer, directory)
    (directory / "README.md").write_text("an adapter\n")
    (directory / "adapter_config.json").write_text(json.dumps({"r": 1, "base_model_name_or_path": plan.base_model}))
    header = json.dumps({"layer.lora_B.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}).encode()
    body = struct.pack("<8f", *bytes.fromhex(state.sha256)[:8])
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + body)


def main(argv: Sequence[str]) -> int:
    """The child's entry."""
    return run_child(train, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
