"""A real control plane for the session, and a namespace of its own for each test."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from examples.cluster.control_plane import ControlPlane, control_plane
from job.contract.errors import ConfigError
from job.storage import Storage
from job.storage.opening import open_storage
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.launching import Prepared, prepare
from launcher.manifest import Manifest
from tests.cluster.faults import FaultyApi, faulty_api
from tests.tiny import make_tiny_model, sums

SECONDS = 300
"""No test is to hang; and a busy machine takes its time."""
T = TypeVar("T")


def until(found: Callable[[], T], seconds: float = SECONDS) -> T:
    """What is found first that is true."""
    deadline = time.monotonic() + seconds
    while not (there := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return there


class Theirs(ControlPlane):
    """A person's own cluster: kind, or any other."""

    def __init__(self, kubeconfig: str) -> None:
        super().__init__(Path(kubeconfig).parent, "")
        self._kubeconfig = Path(kubeconfig)

    def kubeconfig(self, user: str = "admin") -> Path:
        return self._kubeconfig

    def kill(self, name: str) -> None:
        pytest.skip("nobody's own cluster is broken by a test")


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane that the session starts; with TEST_KUBECONFIG the one that it names."""
    if theirs := os.environ.get("TEST_KUBECONFIG"):
        yield Theirs(theirs)
        return
    with control_plane(tmp_path_factory.mktemp("plane")) as running:
        yield running


@pytest.fixture
def cluster(plane: ControlPlane) -> Iterator[Cluster]:
    """A fresh namespace that takes restricted pods only, with the trainer's account."""
    made = fresh_namespace(plane)
    yield made
    made.api.send("DELETE", f"/api/v1/namespaces/{made.namespace}")


@pytest.fixture
def api(plane: ControlPlane, tmp_path: Path) -> Iterator[FaultyApi]:
    """A server before the control plane's, that misbehaves as it is told to."""
    with faulty_api(plane, tmp_path) as between:
        yield between


@pytest.fixture
def through(api: FaultyApi, cluster: Cluster) -> Cluster:
    """The same namespace, through the server between."""
    return Cluster.connect(str(api.kubeconfig), namespace=cluster.namespace)


def fresh_namespace(plane: ControlPlane) -> Cluster:
    """A namespace of a name that no other test has."""
    name = f"test-{uuid4().hex[:8]}"
    made = Cluster.connect(str(plane.kubeconfig()), namespace=name)
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    post(made, "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    post(made, f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "finetune-trainer"}})
    return made


def post(cluster: Cluster, path: str, body: Json) -> Json:
    """Creates any object."""
    return cluster.api.send("POST", path, body=body).json()


def post_urgent_pod(cluster: Cluster, name: str, spec: Json) -> None:
    """A pod that is more important than any, by a PriorityClass of its own of the same name."""
    post(cluster, "/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": name}, "value": 1000})
    pod = {"metadata": {"name": name}, "spec": {**spec, "priorityClassName": name}}

    def posted() -> bool:
        """False where the API server has not heard yet of the class that it has just made."""
        try:
            post(cluster, f"/api/v1/namespaces/{cluster.namespace}/pods", pod)
        except ConfigError as error:
            if "no PriorityClass" not in str(error):
                raise
            return False
        return True

    until(posted)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "runs"))


@pytest.fixture
def config_file(base: Path, tmp_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in sums(8)))
    config = {
        "name": "bot",
        "base_model": str(base),
        "dtype": "float32",
        "load_in_4bit": False,
        "dataset": {"train": str(rows)},
        "training": {"max_steps": 1},
        "compute": {"gpus": 0},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def prepared(config_file: Path, template: Manifest, storage: Storage) -> Prepared:
    return prepare(config_file.read_bytes(), str(config_file), template, storage, "ada")
