"""Runs as the job itself writes them, and what a launcher says of one."""

from typing import Any

from job.contract.config import Compute
from job.contract.documents import Result
from job.run import Run, put_result, put_spec
from job.storage import Storage
from launcher.manifest import Submission
from tests.results import result_of, spec


def run_of(storage: Storage, run_id: str, name: str = "bot") -> Run:
    return Run(storage, spec(name), run_id)


def publish(run: Run) -> Result:
    """The run's result, committed as the job does it."""
    put_spec(run, b"config")
    return put_result(run, result_of(run))


def submission(**compute: Any) -> Submission:
    """A config that asks for so much, submitted."""
    return Submission(
        model="bot",
        runs="s3://b",
        config_uri="s3://b/configs/c.yaml",
        compute=Compute(**compute),
        submitter="ada",
        version="1",
    )
