"""A run's documents where a test needs them and no training."""

from typing import Any

from job.contract.config import Dataset, Recipe, Training
from job.contract.documents import Artifact, Artifacts, FrozenDataset, FrozenModel, Result, Spec, TrainSummary
from job.contract.model import sha256_hex
from job.run import Run

SUMMARY = TrainSummary(
    steps=1,
    train_loss=1.0,
    eval_loss=None,
    tokens_seen=1,
    tokens_trained=1,
    trainable_parameters=1,
    total_parameters=1,
    effective_batch=1,
    seconds=1.0,
    device="cpu",
    dtype="float32",
    peak_memory_bytes=1,
    memory_after_load_bytes=1,
)


def result(**known: Any) -> Result:
    """A result, of which a test gives what it looks at."""
    default: dict[str, Any] = {
        "run_id": "bot-0123456789",
        "spec_sha256": "0" * 64,
        "attempt": 1,
        "artifacts": Artifacts(),
        "train": SUMMARY,
        "seconds_by_stage": {},
        "gpu_seconds": 0.0,
        "versions": {},
        "image": None,
        "code_version": "1",
        "code_revision": None,
    }
    return Result(**(default | known))


def spec(name: str = "bot") -> Spec:
    """The spec of a run of a model line."""
    return Spec(
        recipe=Recipe(name=name, base_model="/base", dataset=Dataset(train="/rows"), training=Training(max_steps=1)),
        gpus=0,
        base_model=FrozenModel(uri="/base", files=()),
        dataset=FrozenDataset(train=()),
        image=None,
        code_version="1",
    )


def result_of(run: Run) -> Result:
    """The result of a run with one artifact, which is put into its store."""
    stat = run.storage.put(f"{run.keys.attempt(1).artifacts('lora')}weights", b"weights")
    artifact = Artifact(key=stat.key, size=7, sha256=sha256_hex(b"weights"), checksum=stat.checksum)
    return result(run_id=run.run_id, spec_sha256=run.spec_sha256, artifacts=Artifacts(lora=(artifact,)))
