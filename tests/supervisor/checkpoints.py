"""Checkpoints as the trainer leaves them, by name and size."""

from pathlib import Path

from job.contract.documents import Fingerprint
from job.contract.events import Saved
from job.run import Run

NAMES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def fingerprint(run: Run, torch: str = "2.6.0") -> Fingerprint:
    return Fingerprint(spec_sha256=run.spec_sha256, versions={"torch": torch}, device="cpu", world_size=1)


def saved(directory: Path, step: int) -> Saved:
    """A checkpoint on scratch, and what training tells of it."""
    path = directory / f"step-{step:06d}"
    path.mkdir(parents=True)
    for name in NAMES:
        (path / name).write_bytes(f"{name} of step {step}".encode())
    return Saved(step=step, directory=str(path))
