"""A cluster and a store on this machine, and the commands that are led there."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.processes import compiled_once
from examples.cluster.control_plane import ControlPlane, control_plane
from examples.demo.__main__ import CONFIG, ROOT, put_inputs
from examples.demo.server import s3_server
from job.storage.opening import open_storage
from launcher import Launcher

RUNS_ROOT = f"{ROOT}/finetune"
"""Beside the inputs."""
FINETUNE, KUBECTL = (str(Path(sys.executable).with_name(name)) for name in ("finetune", "kubectl"))
_TEMPLATE = Path(__file__).parents[1] / "k8s" / "job.yaml"


@dataclass(frozen=True)
class Site:
    """A cluster and a store, and the variables that lead every command there."""

    plane: ControlPlane
    launcher: Launcher
    environment: dict[str, str]
    directory: Path
    """For configs and manifests."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command that has ended well, and what it printed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return done

    def seconds(self, *command: str) -> float:
        """How long a command takes."""
        began = time.perf_counter()
        self.run(*command)
        return time.perf_counter() - began

    def config(self, name: str) -> Path:
        """The demo's config under another name, and so another run."""
        path = self.directory / f"{name}.yaml"
        path.write_text(CONFIG.read_text("utf-8").replace("name: demo\n", f"name: {name}\n", 1))
        return path

    def manifest(self, name: str) -> Path:
        """The Job that a person would write for a config: the template with its name and where its config is."""
        job = yaml.safe_load(_TEMPLATE.read_bytes())
        job["metadata"]["name"] = name
        container = job["spec"]["template"]["spec"]["containers"][0]
        container["env"][0]["value"] = f"{RUNS_ROOT}/configs/{name}.yaml"
        path = self.directory / f"{name}.job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def requests(self) -> Counter[str]:
        """Lists and watches of Jobs and pods in one namespace, by verb. The controllers' own are of the whole cluster."""
        told = self.launcher.cluster.api.send("GET", "/metrics", accept="*/*").body.decode()
        counts: Counter[str] = Counter()
        for line in told.splitlines():
            if line.startswith("apiserver_request_total{"):
                labels, count = dict(re.findall(r'(\w+)="([^"]*)"', line)), line.rpartition(" ")[2]
                if labels["resource"] in ("jobs", "pods") and labels["scope"] in ("namespace", "resource"):
                    counts[labels["verb"]] += int(float(count))
        return counts


@contextmanager
def open_site(directory: Path) -> Iterator[Site]:
    """As a site sets itself up once: a namespace for restricted pods with the trainer's account, and the demo's inputs."""
    with control_plane(directory / "plane") as plane, s3_server(directory / "s3", ROOT.removeprefix("s3://")) as server:
        os.environ.update(server.environment)
        put_inputs(open_storage(ROOT), CONFIG.read_bytes())
        kubeconfig = str(plane.kubeconfig())
        launcher = Launcher(RUNS_ROOT, _TEMPLATE, kubeconfig, namespace="bench")
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        namespace = {"metadata": {"name": "bench", "labels": labels}}
        launcher.cluster.api.send("POST", "/api/v1/namespaces", body=namespace)
        account = {"metadata": {"name": "finetune-trainer"}}
        launcher.cluster.api.send("POST", "/api/v1/namespaces/bench/serviceaccounts", body=account)
        environment = compiled_once(directory / "bytecode") | {
            "HOME": str(directory),  # kubectl keeps there what the API server serves
            "KUBECONFIG": kubeconfig,
            "FINETUNE_RUNS": RUNS_ROOT,
            "FINETUNE_TEMPLATE": str(_TEMPLATE),
        }
        site = Site(plane, launcher, environment, directory)
        site.run(KUBECTL, "config", "set-context", "--current", "--namespace=bench")
        yield site
