"""`make gpu-smoke`: for whoever has a card. A small real model goes through the whole job on it; then a report to send back.

The report's schema is docs/schemas/gpu-smoke.json. Ends with 71 where there is no GPU.
"""

import math
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from examples.demo.base_model import base_model
from examples.demo.data import jsonl
from job.contract.documents import Outcome, Result
from job.contract.errors import JobError
from job.contract.events import Versions
from job.contract.exits import Exit
from job.contract.model import Document, canonical_bytes
from job.preflight import Device, check_device
from job.scratch import Scratch
from job.storage.opening import open_storage
from tests.gpu_path.kernels_run import run_kernels
from tests.gpu_path.runs import ROOT, Trained, distance, gpu_config, gpu_plan, reference, train

STEPS = 60


class GpuSmoke(Document):
    """What one machine's GPU made of the product. Null: not measured, `problems` says why."""

    schema_version: Literal[1] = 1
    code_version: str
    device: tuple[str, ...]
    """The GPUs' names."""
    driver: str
    """Driver and compute capability."""
    memory_bytes: int
    versions: dict[str, str]
    """Of the training stack."""
    job: Outcome
    """How the whole job ended, from a config to its GGUF."""
    result: Result | None
    """Its result: losses, tokens, seconds by stage, peak memory."""
    tokens_per_second: float | None
    losses: tuple[float, ...]
    """Of a training run whose batches and initial adapter the reference shares."""
    reference_losses: tuple[float, ...]
    """The same by plain transformers and peft, on the same card."""
    same_batches: bool | None
    loss_apart: float | None
    """The largest relative difference of the two, over all steps."""
    grad_norm_apart: float | None
    """The same of the gradient's norm, in which an error of scale shows first."""
    adapter_apart: float | None
    """The norm of the adapters' difference, over that of what training changed."""
    kernels: dict[str, float | None]
    """The largest relative difference to torch of each Triton kernel alone."""
    problems: tuple[str, ...]
    """What could not be measured, and why."""


CONFIG = """
name: gpu-smoke
base_model: {base}
max_seq_length: 512
dataset:
  train: {rows}
training:
  max_steps: {steps}
samples:
  prompts: ["Continue the fibonnaci sequence: 1, 1, 2, 3, 5, 8,"]
export:
  gguf: [f16, q4_k_m]
compute:
  gpus: 1
  gpu_memory_gib: 4
"""


def main(out: Path) -> int:
    """Measures, writes `out`/report.json and says where it is.

    Returns:
        The whole job's code; 70 where that is 0 and something else could not be measured.
    """
    try:
        device = check_device(1)
    except JobError as error:
        print(f"{error.message}\n{error.resolution}", file=sys.stderr)
        return error.code
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    report = measure(device, out.absolute())
    path = out / "report.json"
    path.write_bytes(canonical_bytes(report))
    print(f"The report is {path}; {len(report.problems)} problems.", *report.problems, sep="\n")
    return report.job.code or (Exit.BUG if report.problems else Exit.OK)


def measure(device: Device, out: Path) -> GpuSmoke:
    """All parts; one that fails is told in `problems`, and the others go on."""
    problems: list[str] = []
    job, result = run_job(out)
    ours = theirs = apart = None
    kernels: dict[str, float | None] = {}
    try:
        ours, theirs = run_pair(out)
        apart = distance(ours, theirs)
    except Exception as error:
        problems.append(f"beside the reference: {error}")
    try:
        kernels = {name: finite(found["apart"]) for name, found in run_kernels(out / "kernels").items()}
    except Exception as error:
        problems.append(f"kernels alone: {error}")
    problems += [f"the kernel {name} gives what is no number" for name, value in kernels.items() if value is None]
    return GpuSmoke(
        code_version=version("finetune"),
        device=device.names,
        driver=device.detail,
        memory_bytes=device.memory_bytes,
        versions=next((event.versions for event in ours.events if isinstance(event, Versions)), {}) if ours else {},
        job=job,
        result=result,
        tokens_per_second=result.train.tokens_seen / result.train.seconds if result else None,
        losses=tuple(ours.losses) if ours else (),
        reference_losses=tuple(theirs.losses) if theirs else (),
        same_batches=apart.same_batches if apart else None,
        loss_apart=finite(apart.loss) if apart else None,
        grad_norm_apart=finite(apart.grad_norm) if apart else None,
        adapter_apart=finite(apart.adapter) if apart else None,
        kernels=kernels,
        problems=tuple(problems),
    )


def finite(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if math.isfinite(value) else None


def run_job(out: Path) -> tuple[Outcome, Result | None]:
    """`python -m job` as a pod would run it."""
    rows, config, told = out / "rows.jsonl", out / "config.yaml", out / "outcome.json"
    rows.write_text(jsonl())
    config.write_text(CONFIG.format(base=base_model(), rows=rows, steps=STEPS))
    places = {"--config": config, "--runs": out / "runs", "--scratch": out / "scratch", "--termination-log": told}
    flags = [word for flag, path in places.items() for word in (flag, str(path))]
    ended = subprocess.run([sys.executable, "-m", "job", *flags], cwd=ROOT, env=dict(os.environ), check=False)
    if not told.exists():
        return Outcome(code=128 - ended.returncode, name="KILLED", stage="start", message="it told nothing"), None
    outcome = Outcome.model_validate_json(told.read_bytes())
    if outcome.code:
        return outcome, None
    runs = open_storage(str(out / "runs"))
    [key] = [stat.key for stat in runs.list("runs/") if stat.key.endswith("/result.json")]
    found = runs.get(key)
    assert found
    return outcome, Result.model_validate_json(found[0])


def run_pair(out: Path) -> tuple[Trained, Trained]:
    """The same training by the product and by plain transformers and peft, 4-bit and in bfloat16."""
    config = gpu_config(base_model(), "bfloat16", True, {"max_steps": STEPS, "optim": "adamw_8bit"})
    tuned, plain = Scratch(out / "tuned"), Scratch(out / "plain")
    ours = train(gpu_plan(tuned, base_model(), config), tuned)
    return ours, reference(gpu_plan(plain, base_model(), config), plain)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
