"""The image that ships in the stand-in's place: a tiny real model, finetuned on this machine's CPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.node.conftest import Bench
from tests.cluster.node.image.conftest import site
from tests.job.conftest import Pod
from tests.soak.conftest import Elsewhere, pod_of

__all__ = ["site"]


@dataclass(frozen=True)
class Roomy(Bench):
    """Gives Unsloth the memory that it takes. It obeys no orders: its steps take their time by themselves."""

    def config(self, *orders: str, name: str = "bot", **keys: Any) -> Path:
        compute = {"cpus": 1, "memory_gib": 4} | keys.get("compute", {})
        return super().config(name=name, **keys | {"compute": compute, "samples": {"prompts": []}})


@pytest.fixture(scope="session")
def kind() -> type[Bench]:
    return Roomy


@pytest.fixture
def elsewhere(tmp_path: Path, llama_cpp: Path) -> Elsewhere:
    """Another pod of a run's Job, which trains as the image does."""
    as_there = {"FINETUNE_LLAMA_CPP": str(llama_cpp), "OMP_NUM_THREADS": "1"}
    return lambda bench, run: pod_of(Pod, bench, run, tmp_path, **as_there)
