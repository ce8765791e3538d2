"""A site on the machine's own cluster, set up as k8s/README.md tells a person to: kustomize, kubectl, a Secret."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from examples.cluster.machine import Machine
from examples.demo.__main__ import CONFIG, ROOT, put_inputs
from job.storage.opening import open_storage

NAMESPACE = "finetune"
_K8S = Path(__file__).parents[2] / "k8s"
_KUBECTL = Path(sys.executable).with_name("kubectl")


def furnish(running: Machine, directory: Path, image: str) -> dict[str, str]:
    """What a site sets up once: the namespace with all that is in it, the demo's inputs, and the Job template.

    Args:
        running: what it is brought to.
        directory: gets the site's files.
        image: of the template; the node has it.

    Returns:
        The variables by which the launcher and kubectl find it.
    """
    kubeconfig = str(running.plane.kubeconfig())
    template = write_site(directory, running.s3.endpoint, image)
    kubectl(kubeconfig, "apply", "--server-side", "-k", str(directory / "base"))
    give_access(running, NAMESPACE)
    kubectl(kubeconfig, "config", "set-context", "--current", f"--namespace={NAMESPACE}")
    os.environ.update(running.s3.environment)
    put_inputs(open_storage(ROOT), CONFIG.read_bytes())
    return {**running.s3.environment, "KUBECONFIG": kubeconfig, "FINETUNE_TEMPLATE": str(template)}


def give_access(running: Machine, namespace: str) -> None:
    """Lets the pods of a namespace reach the store: the Secret and the authority that the template refers to."""
    for body in (_secret(running.s3.environment), _authority(running.plane.directory / "pki" / "ca.crt")):
        given = json.dumps(body)
        kubectl(str(running.plane.kubeconfig()), "apply", "--server-side", "-n", namespace, "-f", "-", given=given)


def write_site(site: Path, endpoint: str, image: str) -> Path:
    """A site's kustomizations, as k8s/README.md tells: the base to apply, and the Job template, whose path is given back."""
    for folder, text in _SITE.items():
        kustomization = site / folder / "kustomization.yaml"
        kustomization.parent.mkdir(parents=True, exist_ok=True)
        k8s = os.path.relpath(_K8S, kustomization.parent)
        kustomization.write_text(text.format(k8s=k8s, endpoint=endpoint, image=image, root=ROOT))
    template = site / "job.yaml"
    template.write_text(subprocess.check_output([_KUBECTL, "kustomize", site / "job"], text=True))
    return template


def _secret(environment: Mapping[str, str]) -> dict[str, object]:
    data = {
        "access-key-id": environment["AWS_ACCESS_KEY_ID"],
        "secret-access-key": environment["AWS_SECRET_ACCESS_KEY"],
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "finetune-s3"}, "stringData": data}


def _authority(certificate: Path) -> dict[str, object]:
    data = {"ca.crt": certificate.read_text()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "site-ca"}, "data": data}


def kubectl(kubeconfig: str, *words: str, given: str | None = None) -> str:
    """What it prints."""
    command = [str(_KUBECTL), "--kubeconfig", kubeconfig, *words]
    return subprocess.run(command, input=given, check=True, stdout=subprocess.PIPE, text=True).stdout


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
                image: "{image}"
                env:
                  - {{ name: FINETUNE_RUNS, value: "{root}" }}
                  - {{ name: AWS_ENDPOINT_URL_S3, value: "{endpoint}" }}
""",
}
