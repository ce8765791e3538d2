"""`make cluster`, `make cluster-down`: a cluster on this machine that `make launch` finds by itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.cluster import standin
from examples.cluster.machine import Machine, machine
from examples.cluster.network import remove_abandoned
from examples.cluster.node import missing
from examples.demo.__main__ import CONFIG, ROOT, put_inputs
from job.storage.opening import open_storage

DIRECTORY = Path("build/cluster")
_K8S = Path(__file__).parents[2] / "k8s"
NAMESPACE = "finetune"
_KUBECTL = Path(sys.executable).with_name("kubectl")


def main(argv: Sequence[str]) -> int:
    """Starts or ends it; `run` is the process that holds it."""
    return {"up": up, "run": run, "down": down}[argv[0]](DIRECTORY.absolute())


def up(directory: Path) -> int:
    """Starts the process that holds the cluster, and returns when all is there."""
    if _holder(directory):
        print(f"the cluster runs already; `make cluster-down` ends it. {_USE}")
        return 0
    shutil.rmtree(directory / "machine", ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "examples.cluster", "run"]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    (directory / "pid").write_text(str(process.pid))
    told = 0
    while True:
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[told:]:
            print(line, file=sys.stderr)
        told = len(lines)
        if process.poll() is not None:
            (directory / "pid").unlink(missing_ok=True)
            return 1
        if (directory / "ready").exists():
            print(_USE)
            return 0
        time.sleep(0.3)


def run(directory: Path) -> int:
    """Holds the cluster until it is told to end."""
    ready = directory / "ready"
    ready.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (directory / "machine").mkdir(parents=True, exist_ok=True)
    if lacking := missing():
        print(f"no node, pods stay Pending: this takes {lacking}", flush=True)
    try:
        with machine(directory / "machine", directory / "s3", ROOT.removeprefix("s3://")) as running:
            furnish(running, directory)
            ready.touch()
            signal.pause()
    finally:
        ready.unlink(missing_ok=True)
        (directory / "pid").unlink(missing_ok=True)
        shutil.rmtree(directory / "machine", ignore_errors=True)
    return 0


def furnish(running: Machine, directory: Path) -> None:
    """What a site sets up once: the namespace with all that is in it, the image, the demo's inputs, and the Job template."""
    print("the control plane and S3 answer; bringing in k8s/base, the image and the demo's inputs", flush=True)
    kubeconfig = str(running.plane.kubeconfig())
    template = write_site(directory / "site", running.s3.endpoint, standin.IMAGE)
    kubectl(kubeconfig, "apply", "--server-side", "-k", str(directory / "site" / "base"))
    for body in (_secret(running.s3.environment), _authority(running.plane.directory / "pki" / "ca.crt")):
        kubectl(kubeconfig, "apply", "--server-side", "-f", "-", given=json.dumps(body))
    kubectl(kubeconfig, "config", "set-context", "--current", f"--namespace={NAMESPACE}")
    if running.node:
        running.node.load(standin.build(directory / "machine" / "stand-in.tar"))
    os.environ.update(running.s3.environment)
    put_inputs(open_storage(ROOT), CONFIG.read_bytes())
    variables = {**running.s3.environment, "KUBECONFIG": kubeconfig, "FINETUNE_TEMPLATE": str(template)}
    (directory / "environment").write_text("".join(f"export {name}={text}\n" for name, text in variables.items()))


def write_site(site: Path, endpoint: str, image: str) -> Path:
    """A site's kustomizations, as k8s/README.md tells: the base to apply, and the Job template, whose path is given back."""
    name, _, tag = image.partition(":")
    for folder, text in _SITE.items():
        kustomization = site / folder / "kustomization.yaml"
        kustomization.parent.mkdir(parents=True, exist_ok=True)
        k8s = os.path.relpath(_K8S, kustomization.parent)
        kustomization.write_text(text.format(k8s=k8s, endpoint=endpoint, name=name, tag=tag, root=ROOT))
    template = site / "job.yaml"
    template.write_text(subprocess.check_output([_KUBECTL, "kustomize", site / "job"], text=True))
    return template


def _secret(environment: Mapping[str, str]) -> dict[str, object]:
    data = {
        "access-key-id": environment["AWS_ACCESS_KEY_ID"],
        "secret-access-key": environment["AWS_SECRET_ACCESS_KEY"],
    }
    metadata = {"name": "finetune-s3", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def _authority(certificate: Path) -> dict[str, object]:
    metadata = {"name": "site-ca", "namespace": NAMESPACE}
    data = {"ca.crt": certificate.read_text()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def kubectl(kubeconfig: str, *words: str, given: str | None = None) -> str:
    """What it prints."""
    command = [str(_KUBECTL), "--kubeconfig", kubeconfig, *words]
    return subprocess.run(command, input=given, check=True, stdout=subprocess.PIPE, text=True).stdout


def down(directory: Path) -> int:
    """Ends the cluster and waits until nothing of it is left; what S3 holds stays."""
    if holder := _holder(directory):
        os.kill(holder, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while _holder(directory):
            if time.monotonic() > deadline:
                os.kill(holder, signal.SIGKILL)  # its children end with it
            time.sleep(0.2)
    if os.geteuid() == 0:
        remove_abandoned()
    (directory / "environment").unlink(missing_ok=True)
    shutil.rmtree(directory / "machine", ignore_errors=True)
    return 0


def _holder(directory: Path) -> int | None:
    """The process that holds the cluster."""
    try:
        pid = int((directory / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"examples.cluster" in command else None


_USE = "Now: make launch CONFIG=examples/demo.yaml (and: . build/cluster/environment, for kubectl and finetune)"
_SITE = {
    "base": """resources: [{k8s}/base]
components: [{k8s}/overlays/own-s3]
patches:
  - target: {{ kind: ConfigMap, name: finetune-job-policy }}
    patch: |-
      - {{ op: replace, path: /data/image-prefix, value: localhost/ }}
""",
    "job": """resources: [{k8s}]
components: [{k8s}/overlays/own-s3, {k8s}/overlays/as-job]
images: [{{ name: registry.example.com/finetune, newName: {name}, newTag: "{tag}" }}]
patches:
  - target: {{ kind: Job }}
    patch: |-
      apiVersion: batch/v1
      kind: Job
      metadata: {{ name: any }}
      spec:
        template:
          spec:
            containers:
              - name: trainer
                env:
                  - {{ name: FINETUNE_RUNS, value: "{root}" }}
                  - {{ name: AWS_ENDPOINT_URL_S3, value: "{endpoint}" }}
""",
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
