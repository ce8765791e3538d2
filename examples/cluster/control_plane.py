"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler. Needs no root.

The binaries are built once from Go modules (`build.sh`), into a cache outside the tree.
"""

import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from examples.cache import CACHE
from examples.demo.server import free_ports

HERE = Path(__file__).parent
_READY_SECONDS = 60
_SERVICES = "10.96.0.0/16"
NODE = "node1"
"""The one node's name, where there is one."""


def binaries() -> Path:
    """The folder of the built binaries."""
    cache = CACHE / "kubernetes-1.37"
    subprocess.run([HERE / "build.sh", cache], check=True)
    return cache / "bin"


class ControlPlane:
    """A running control plane, and its parts, each of which can be killed and started again.

    Args:
        directory: its data, logs and credentials.
        server: where its API server answers.
    """

    def __init__(self, directory: Path, server: str) -> None:
        self.directory, self.server = directory, server
        self._commands: dict[str, Sequence[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def kubeconfig(self, user: str = "admin") -> Path:
        """How a user reaches it."""
        return self.directory / f"{user}.kubeconfig"

    def start(self, name: str, command: Sequence[str] = ()) -> None:
        """Starts a part; without a command as it was started before."""
        self._commands[name] = command = command or self._commands[name]
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],  # also when this process is killed
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Ends a part at once, without a word to it."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Ends all parts, the last one first. Nothing of what they keep is needed again."""
        for name in reversed(list(self._processes)):
            self.kill(name)

    def wait_until_ready(self) -> None:
        """Returns when the API server answers."""
        context = ssl.create_default_context(cafile=str(self.directory / "pki" / "ca.crt"))
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.server}/readyz", context=context, timeout=2) as answer:
                    if answer.read() == b"ok":
                        return
            except (urllib.error.URLError, OSError):
                pass
            if time.monotonic() > deadline:
                raise RuntimeError((self.directory / "apiserver.log").read_text()[-2000:])
            time.sleep(0.2)


@contextmanager
def control_plane(directory: Path, node_address: str = "127.0.0.1") -> Iterator[ControlPlane]:
    """One with its data in an empty directory, ended with the block. The address is where its one node will be."""
    plane = _started(directory, node_address)
    try:
        yield plane
    finally:
        plane.stop()


def _started(directory: Path, node_address: str) -> ControlPlane:
    built = binaries()
    api, etcd, peer = free_ports(3)
    plane = ControlPlane(directory, f"https://127.0.0.1:{api}")
    _certificates(directory, plane.server, node_address)
    store = f"http://127.0.0.1:{etcd}"
    pki = directory / "pki"
    plane.start(
        "etcd",
        [
            str(built / "server"),
            f"--data-dir={directory}/etcd",
            f"--listen-client-urls={store}",
            f"--advertise-client-urls={store}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        ],
    )
    plane.start(
        "apiserver",
        [
            str(built / "kube-apiserver"),
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
            "--enable-admission-plugins=NodeRestriction",
            "--endpoint-reconciler-type=none",
            "--allow-privileged",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
        ],
    )
    try:
        plane.wait_until_ready()
    except BaseException:
        plane.stop()
        raise
    plane.start(
        "controllers",
        [
            str(built / "kube-controller-manager"),
            f"--kubeconfig={plane.kubeconfig('controllers')}",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            "--use-service-account-credentials",
            "--node-monitor-grace-period=20s",  # of 50: whoever kills a kubelet waits for it
            "--leader-elect=false",
            "--secure-port=0",
        ],
    )
    plane.start(
        "scheduler",
        [
            str(built / "kube-scheduler"),
            f"--kubeconfig={plane.kubeconfig('scheduler')}",
            "--leader-elect=false",
            "--secure-port=0",
        ],
    )
    return plane


def _certificates(directory: Path, server: str, node_address: str) -> None:
    """An authority, a certificate for each server and user, and the users' kubeconfigs."""
    pki = directory / "pki"
    pki.mkdir(parents=True)
    _openssl(pki, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 3650")
    _openssl(pki, "genrsa -out sa.key 2048")
    _openssl(pki, "rsa -in sa.key -pubout -out sa.pub")
    names = "IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc"
    _sign(pki, "apiserver", "/CN=kube-apiserver", names)
    _sign(pki, "kubelet-client", "/O=system:masters/CN=kubelet-client", "DNS:kubelet-client")
    users = {
        "admin": "/O=system:masters/CN=admin",
        "controllers": "/CN=system:kube-controller-manager",
        "scheduler": "/CN=system:kube-scheduler",
        "kubelet": f"/O=system:nodes/CN=system:node:{NODE}",
    }
    for name, subject in users.items():
        _sign(pki, name, subject, f"DNS:{NODE},IP:{node_address}" if name == "kubelet" else f"DNS:{name}")
        (directory / f"{name}.kubeconfig").write_text(
            f"""{{apiVersion: v1, kind: Config, current-context: local,
 contexts: [{{name: local, context: {{cluster: local, user: {name}}}}}],
 clusters: [{{name: local, cluster: {{server: "{server}", certificate-authority: {pki}/ca.crt}}}}],
 users: [{{name: {name}, user: {{client-certificate: {pki}/{name}.crt, client-key: {pki}/{name}.key}}}}]}}
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
