"""The launcher's own small image, at work where a CI or a pod has it: no kubeconfig, an account's token instead."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from examples.cluster import shipped
from examples.cluster.site import NAMESPACE
from tests.cluster.node.conftest import Bench, Site
from tests.conftest import ROOT

HARDENED = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
HARDENED += ["--user=1234567:0", "--passwd=false", "--ulimit=nofile=4096:4096", "--ulimit=nproc=8192:8192"]


@pytest.fixture(scope="module")
def image(site: Site) -> str:
    """The launcher's image, built where the trainer's can be; its name."""
    return shipped.build("launcher").name


@pytest.fixture
def account(bench: Bench, tmp_path: Path) -> list[str]:
    """Flags that give a container what the kubelet gives a pod of the launcher's account."""
    token = bench.kubectl("create", "token", "finetune-launcher", f"--namespace={NAMESPACE}")
    directory = tmp_path / "account"
    directory.mkdir()
    (directory / "token").write_text(token)
    (directory / "namespace").write_text(NAMESPACE)
    shutil.copy(bench.site.machine.plane.directory / "pki" / "ca.crt", directory / "ca.crt")
    server = urlsplit(bench.site.machine.plane.server)
    return [
        f"--volume={directory}:/var/run/secrets/kubernetes.io/serviceaccount:ro",
        f"--env=KUBERNETES_SERVICE_HOST={server.hostname}",
        f"--env=KUBERNETES_SERVICE_PORT={server.port}",
    ]


def run(image: str, *words: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    command = ["podman", "run", "--rm", *HARDENED, *flags, image, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_is_under_400_mb(image: str) -> None:
    size = subprocess.check_output(["podman", "image", "inspect", "--format={{.Size}}", image], text=True)
    assert 0 < int(size) < 400e6


def test_it_launches_a_run_and_sees_it_through(
    image: str, account: list[str], bench: Bench, small: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    shutil.copy(small, inputs / "config.yaml")
    (inputs / "job.yaml").write_text(json.dumps(bench.site.template))
    variables = bench.site.machine.s3.environment | {
        "FINETUNE_TEMPLATE": "/inputs/job.yaml",
        "FINETUNE_RUNS": bench.root,
    }
    flags = ["--network=host", f"--volume={inputs}:/inputs:ro", *account]
    flags += [f"--env={name}={text}" for name, text in variables.items()]

    launched = run(image, "launch", "/inputs/config.yaml", "--wait", "-o", "json", flags=flags)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    told = json.loads(launched.stdout)
    assert told["phase"] == "Succeeded"
    there = bench.kubectl("get", "job", told["run_id"], f"--namespace={NAMESPACE}", "-o", "name")
    assert there == f"job.batch/{told['run_id']}\n"
    logged = run(image, "logs", told["run_id"], flags=flags)
    assert '"event": "outcome"' in logged.stdout, logged.stderr


def test_a_package_whose_hash_is_another_is_not_built(image: str, tmp_path: Path) -> None:
    """The lock names structlog's archives by other hashes than they have."""
    for name in ("docker", "job", "launcher"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, tmp_path)
    before, package, after = (ROOT / "uv.lock").read_text().partition('[[package]]\nname = "structlog"\n')
    theirs, more, others = after.partition("[[package]]")
    tampered = re.sub("sha256:....", "sha256:0000", theirs)
    (tmp_path / "uv.lock").write_text(before + package + tampered + more + others)
    told = shipped.environment("launcher") | {"IMAGE": "localhost/finetune-tampered"}
    built = subprocess.run([tmp_path / "docker" / "build.sh"], env=told, capture_output=True, text=True, check=False)
    assert built.returncode != 0
    assert "structlog" in built.stderr + built.stdout
    assert "hash mismatch" in (built.stderr + built.stdout).lower()
