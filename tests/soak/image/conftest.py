"""The image that ships in the stand-in's place: a tiny real model, finetuned on this machine's CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from examples.demo.__main__ import ROOT as BUCKET
from launcher.cluster import Cluster
from tests.cluster.node.conftest import Bench, Site, whole_run
from tests.cluster.node.image.conftest import site

__all__ = ["site"]


@dataclass(frozen=True)
class Roomy(Bench):
    """Gives Unsloth the memory that it takes. It obeys no orders: its steps take their time by themselves."""

    def config(self, *orders: str, name: str = "bot", **keys: Any) -> Path:
        compute = {"cpus": 1, "memory_gib": 4} | keys.get("compute", {})
        return super().config(name=name, **keys | {"compute": compute, "samples": {"prompts": []}})


@pytest.fixture
def bench(site: Site, cluster: Cluster, tmp_path: Path) -> Bench:
    return Roomy(site, cluster, tmp_path, f"{BUCKET}/{uuid4().hex}")


@pytest.fixture(scope="session")
def uninterrupted(site: Site, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The adapter of a run of this training that nothing happens to."""
    return whole_run(Roomy, site, tmp_path_factory.mktemp("uninterrupted"))
