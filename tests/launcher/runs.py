"""Runs as the job itself writes them."""

from job.contract.config import Dataset, Recipe, Training
from job.contract.documents import Artifact, Artifacts, FrozenDataset, FrozenModel, Result, Spec
from job.contract.model import sha256_hex
from job.run import Run, put_result, put_spec
from job.storage import Storage
from tests.results import SUMMARY


def run_of(storage: Storage, run_id: str, name: str = "bot") -> Run:
    recipe = Recipe(name=name, base_model="/base", dataset=Dataset(train="/rows"), training=Training(max_steps=1))
    spec = Spec(
        recipe=recipe,
        gpus=0,
        base_model=FrozenModel(uri="/base", files=()),
        dataset=FrozenDataset(train=()),
        image=None,
        code_version="1",
    )
    return Run(storage, spec, run_id)


def publish(run: Run) -> Result:
    """The run's result, committed as the job does it."""
    stat = run.storage.put(f"{run.keys.attempt(1).artifacts('lora')}weights", b"weights")
    artifact = Artifact(key=stat.key, size=7, sha256=sha256_hex(b"weights"), checksum=stat.checksum)
    result = Result(
        run_id=run.run_id,
        spec_sha256=run.spec_sha256,
        attempt=1,
        artifacts=Artifacts(lora=(artifact,)),
        train=SUMMARY,
        seconds_by_stage={},
        gpu_seconds=0.0,
        versions={},
        image=None,
        code_version="1",
        code_revision=None,
    )
    put_spec(run, b"config")
    return put_result(run, result)
