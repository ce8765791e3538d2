"""A real node beside a control plane of its own, S3 at an address that its pods reach, and the trainer's stand-in."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from examples.cluster import standin
from examples.cluster.control_plane import NODE
from examples.cluster.machine import Machine, machine
from examples.cluster.node import Node, missing
from examples.cluster.site import furnish, give_access, kubectl
from examples.demo.__main__ import ROOT as BUCKET
from job.storage.opening import open_storage
from job.storage.s3_client import forget_client
from job.storage.transfer import upload_directory
from launcher import Launcher
from launcher.cluster import Cluster
from launcher.kube import Json
from launcher.manifest import Manifest, set_env, trainer
from launcher.status import Phase
from tests.cluster.conftest import fresh_namespace
from tests.cluster.node.attempts import adapter
from tests.tiny import sums

_SITES_OWN = ("FINETUNE_RUNS", "FINETUNE_TEMPLATE", "FINETUNE_SUBMITTER")


@dataclass(frozen=True)
class Site:
    """A cluster that is set up."""

    machine: Machine
    environment: dict[str, str]
    """How the launcher and kubectl find it."""
    template: Manifest


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Site]:
    if lacking := missing():
        assert not (os.environ.get("CI") and lacking.startswith("apt-get")), f"left out: {lacking}"
        pytest.skip(f"no node without {lacking}")
    directory = tmp_path_factory.mktemp("site")
    (directory / "machine").mkdir()
    with machine(directory / "machine", directory / "s3", BUCKET.removeprefix("s3://")) as running:
        with store_of(running):
            assert running.node
            running.node.load(standin.build(directory / "stand-in.tar"))
            variables = furnish(running, directory / "site", standin.IMAGE)
            upload_directory(base, open_storage(BUCKET), "tiny/base/")
            rows = "".join(json.dumps(row) + "\n" for row in sums(8))
            open_storage(BUCKET).put("tiny/rows.jsonl", rows.encode())
        template = yaml.safe_load(Path(variables["FINETUNE_TEMPLATE"]).read_bytes())
        yield Site(running, variables, template)


@contextmanager
def store_of(running: Machine) -> Iterator[None]:
    """The S3 variables lead to this machine's server, and nothing else of the environment does anywhere."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_") or name in _SITES_OWN]:
            environment.delenv(name)
        for name, text in running.s3.environment.items():
            environment.setenv(name, text)
        forget_client()
        yield
    forget_client()


@pytest.fixture(autouse=True)
def store(site: Site) -> Iterator[None]:
    with store_of(site.machine):
        yield


@pytest.fixture
def cluster(site: Site) -> Iterator[Cluster]:
    """A fresh namespace that takes restricted pods only, whose pods reach the store."""
    with namespace_of(site) as made:
        yield made


@contextmanager
def namespace_of(site: Site) -> Iterator[Cluster]:
    """The same, as long as the block lasts."""
    made = fresh_namespace(site.machine.plane)
    give_access(site.machine, made.namespace)
    yield made
    made.api.send("DELETE", f"/api/v1/namespaces/{made.namespace}")


Change = Callable[[Manifest], object]
"""What a test does to the Job template."""


@dataclass(frozen=True)
class Bench:
    """Makes configs and launchers for one namespace and a root of its own."""

    site: Site
    cluster: Cluster
    directory: Path
    root: str

    def config(self, *orders: str, name: str = "bot", **keys: Any) -> Path:
        """A config's file, whose stand-in does what it is told."""
        compute = {"gpus": 0, "cpus": 0.5, "memory_gib": 0.5, "scratch_gib": 2, "max_hours": 1}
        config: dict[str, Any] = {
            "name": name,
            "base_model": f"{BUCKET}/tiny/base/",
            "max_seq_length": 128,
            "dtype": "float32",
            "load_in_4bit": False,
            "dataset": {"train": f"{BUCKET}/tiny/rows.jsonl"},
            "training": {"max_steps": 2},
            "samples": {"prompts": [f"stand-in: {order}" for order in orders], "max_new_tokens": 8},
            **keys,
        }
        config["compute"] = compute | keys.get("compute", {})
        path = self.directory / f"{name}.yaml"
        path.write_text(json.dumps(config))
        return path

    def launcher(self, change: Change = lambda _: None, impersonate: str | None = None) -> Launcher:
        """A launcher with the site's template, changed."""
        template = yaml.safe_load(yaml.safe_dump(self.site.template))
        set_env(trainer(template), "FINETUNE_RUNS", self.root)
        set_env(trainer(template), "FINETUNE_HEARTBEAT_SECONDS", "2")
        template["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 5
        change(template)
        path = self.directory / f"job-{uuid4().hex[:8]}.yaml"
        path.write_text(yaml.safe_dump(template))
        kubeconfig = str(self.site.machine.plane.kubeconfig())
        return Launcher(
            self.root, path, kubeconfig, namespace=self.cluster.namespace, impersonate=impersonate, submitter="ada"
        )

    def pods(self, run: str) -> list[Json]:
        """The pods of a run's Job."""
        job = self.cluster.get_job(run)
        assert job
        return self.cluster.pods(job["metadata"]["uid"])

    def kubectl(self, *words: str) -> str:
        """What a person types, and what it prints."""
        return kubectl(str(self.site.machine.plane.kubeconfig()), "--namespace", self.cluster.namespace, *words)


TRAINING = {"max_steps": 40, "save_steps": 4}
"""Of a run that there is time to interrupt."""


@pytest.fixture(scope="session")
def kind() -> type[Bench]:
    """What makes the configs: a folder or a module may have its own."""
    return Bench


@pytest.fixture
def bench(kind: type[Bench], site: Site, cluster: Cluster, tmp_path: Path) -> Bench:
    return kind(site, cluster, tmp_path, f"{BUCKET}/{uuid4().hex}")


@pytest.fixture(scope="module")
def uninterrupted(kind: type[Bench], site: Site, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The adapter of a run of this training that nothing happens to."""
    with store_of(site.machine), namespace_of(site) as cluster:
        whole = kind(site, cluster, tmp_path_factory.mktemp("uninterrupted"), f"{BUCKET}/{uuid4().hex}")
        launcher = whole.launcher()
        run = launcher.launch(whole.config(training=TRAINING)).run_id
        assert launcher.wait(run, timeout=600).phase == Phase.SUCCEEDED
        return adapter(open_storage(whole.root), run)


@pytest.fixture
def node(site: Site, bench: Bench) -> Iterator[Node]:
    """The node, to be broken: it is put in order again."""
    assert site.machine.node
    yield site.machine.node
    site.machine.node.return_kubelet()
    bench.kubectl("patch", "node", NODE, "--type=merge", "-p", '{"spec": {"unschedulable": null, "taints": null}}')
    bench.kubectl("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=90s")
