"""A plugin of pytest for tests that compute: each worker, and all that it starts, has its share of the processors.

Threads of two trainings on the same processors wait for each other at every operation.
"""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        number, workers = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, processors[number % workers % len(processors) :: workers])
