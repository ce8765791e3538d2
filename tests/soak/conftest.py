"""The real node of tests/cluster/node, once more: a session of its own, for what takes minutes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.manifest import env_of
from tests.cluster.conftest import base
from tests.cluster.node.conftest import Bench, bench, cluster, kind, node, site, store, uninterrupted
from tests.job.conftest import Pod
from tests.reliability.starts import StandIn

__all__ = ["base", "bench", "cluster", "kind", "node", "site", "store", "uninterrupted"]

Elsewhere = Callable[[Bench, str], Pod]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    """Another pod of a run's Job, as a process of this machine: a node that is not lost."""
    return lambda bench, run: pod_of(StandIn, bench, run, tmp_path)


def pod_of(pod: type[Pod], bench: Bench, run: str, directory: Path, **variables: str) -> Pod:
    """The pod that a run's Job would have there."""
    job = bench.cluster.get_job(run)
    assert job
    config = env_of(job, "FINETUNE_CONFIG")
    assert config
    place = directory / "elsewhere"
    place.mkdir()
    told = {"FINETUNE_RUN_ID": run, "FINETUNE_JOB_UID": job["metadata"]["uid"]}
    return pod(bench.root, place / "scratch", config, told | variables)
