"""The training child's stand-in: keeps its contract and trains nothing. `job/train.py` in the stand-in image.

A config tells it what to do by its sample prompts: `stand-in: seconds 0.5` for each step, and before the second one
`exit 79`, `signal 9`, `allocate` (memory without end), `fill 100` (MiB on scratch), or `lines 1000` to print.
"""

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from job.contract.documents import TrainSummary
from job.contract.errors import ERROR_BY_CODE
from job.contract.events import Loaded, Step, Trained, Versions
from job.contract.plan import Plan
from job.telling import Teller, run_child

_ORDER = "stand-in: "
_ADVICE = {79: "Lower training.per_device_train_batch_size to 1."}  # as the real one says which key to lower


def train(plan: Plan, teller: Teller) -> None:
    """Steps, and an adapter of one small matrix."""
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
    began = time.monotonic()
    for step in range(1, steps + 1):
        if step == min(2, steps):
            obey(orders)
        time.sleep(seconds)
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
    write_adapter(Path(plan.adapter), plan)
    teller.tell(
        Trained(
            summary=TrainSummary(
                steps=steps,
                train_loss=2.0 / steps,
                eval_loss=None,
                tokens_seen=100 * steps,
                tokens_trained=50 * steps,
                trainable_parameters=8,
                total_parameters=8,
                effective_batch=batch,
                seconds=time.monotonic() - began,
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


def write_adapter(directory: Path, plan: Plan) -> None:
    """An adapter as far as whoever publishes it looks."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps({"r": 1, "base_model_name_or_path": plan.base_model}))
    header = json.dumps({"layer.lora_B.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}).encode()
    body = struct.pack("<8f", *range(8))
    (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + body)


def main(argv: Sequence[str]) -> int:
    """The child's entry."""
    return run_child(train, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
