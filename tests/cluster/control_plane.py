"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler. No root, no node.

The binaries are built once from Go modules (`build.sh`), into a cache outside the tree.
"""

import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.demo.base_model import CACHE
from examples.demo.server import free_ports

HERE = Path(__file__).parent
_READY_SECONDS = 60
_SERVICES = "10.96.0.0/16"


def binaries() -> Path:
    """The folder of the built binaries."""
    cache = CACHE / "kubernetes-1.37"
    subprocess.run([HERE / "build.sh", cache], check=True)
    return cache / "bin"


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane."""

    directory: Path
    server: str

    def kubeconfig(self, user: str = "admin") -> Path:
        """How a user reaches it."""
        return self.directory / f"{user}.kubeconfig"


@contextmanager
def control_plane(directory: Path) -> Iterator[ControlPlane]:
    """Starts one with its data in an empty directory, and ends it with the block."""
    built = binaries()
    api, etcd, peer = free_ports(3)
    plane = ControlPlane(directory, f"https://127.0.0.1:{api}")
    _certificates(directory, plane.server)
    store = f"http://127.0.0.1:{etcd}"
    pki = directory / "pki"
    with ExitStack() as stack:

        def start(name: str, program: str, *flags: str) -> None:
            stack.enter_context(_running(directory / f"{name}.log", [str(built / program), *flags]))

        start(
            "etcd",
            "server",
            f"--data-dir={directory}/etcd",
            f"--listen-client-urls={store}",
            f"--advertise-client-urls={store}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        start(
            "apiserver",
            "kube-apiserver",
            f"--etcd-servers={store}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={api}",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            f"--service-cluster-ip-range={_SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--endpoint-reconciler-type=none",
        )
        _wait_until_ready(plane, pki / "ca.crt")
        start(
            "controllers",
            "kube-controller-manager",
            f"--kubeconfig={plane.kubeconfig('controllers')}",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
        )
        start(
            "scheduler",
            "kube-scheduler",
            f"--kubeconfig={plane.kubeconfig('scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
        )
        yield plane


@contextmanager
def _running(log: Path, command: Sequence[str]) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],  # also when this process is killed
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(plane: ControlPlane, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{plane.server}/readyz", context=context, timeout=2) as answer:
                if answer.read() == b"ok":
                    return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > deadline:
            raise AssertionError((plane.directory / "apiserver.log").read_text()[-2000:])
        time.sleep(0.2)


def _certificates(directory: Path, server: str) -> None:
    """An authority, a certificate for the server and for each user, and the users' kubeconfigs."""
    pki = directory / "pki"
    pki.mkdir(parents=True)
    _openssl(pki, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 3650")
    _openssl(pki, "genrsa -out sa.key 2048")
    _openssl(pki, "rsa -in sa.key -pubout -out sa.pub")
    names = "IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc"
    _sign(pki, "apiserver", "/CN=kube-apiserver", names)
    users = {
        "admin": "/O=system:masters/CN=admin",
        "controllers": "/CN=system:kube-controller-manager",
        "scheduler": "/CN=system:kube-scheduler",
    }
    for name, subject in users.items():
        _sign(pki, name, subject, f"DNS:{name}")
        (directory / f"{name}.kubeconfig").write_text(
            f"""{{apiVersion: v1, kind: Config, current-context: test,
 contexts: [{{name: test, context: {{cluster: test, user: test}}}}],
 clusters: [{{name: test, cluster: {{server: "{server}", certificate-authority: {pki}/ca.crt}}}}],
 users: [{{name: test, user: {{client-certificate: {pki}/{name}.crt, client-key: {pki}/{name}.key}}}}]}}
"""
        )


def _sign(pki: Path, name: str, subject: str, alternatives: str) -> None:
    _openssl(pki, f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj {subject}")
    (pki / f"{name}.ext").write_text(f"subjectAltName={alternatives}")
    _openssl(
        pki,
        f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -out {name}.crt -extfile {name}.ext",
    )


def _openssl(pki: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=pki, capture_output=True, check=True)
