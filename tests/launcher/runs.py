"""Runs as the job itself writes them."""

from job.contract.documents import Result
from job.run import Run, put_result, put_spec
from job.storage import Storage
from tests.results import result_of, spec


def run_of(storage: Storage, run_id: str, name: str = "bot") -> Run:
    return Run(storage, spec(name), run_id)


def publish(run: Run) -> Result:
    """The run's result, committed as the job does it."""
    put_spec(run, b"config")
    return put_result(run, result_of(run))
