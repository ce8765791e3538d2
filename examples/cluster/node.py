"""A real node on this machine: kubelet, containerd and runc, with a GPU that is only pretended. Needs root."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.cluster.control_plane import NODE, ControlPlane, binaries
from examples.cluster.images import StoredImage, archive, description
from examples.cluster.network import Network
from launcher.cluster import Cluster

_HERE = Path(__file__).parent
_READY_SECONDS = 90
_GPUS = 1  # pretended
_PAUSE = "localhost/pause:1"
_CGROUPS = Path("/sys/fs/cgroup")
_AWAY, _RUNS = "kubelet.away", "kubelet.runs"  # node.sh looks for the one, and keeps the other
_PROBE = """
mount -t tmpfs probe /mnt
ip link add ft-probe{number} type bridge
ip link delete ft-probe{number}
groups=/sys/fs/cgroup
[ ! -d $groups/memory ] || groups=$groups/memory
mkdir $groups/ft-probe{number}
rmdir $groups/ft-probe{number}
"""


@dataclass(frozen=True)
class Node:
    """A running node."""

    directory: Path
    address: str

    def load(self, image: Path) -> None:
        """Brings an image archive to it."""
        self._ctr("images", "import", str(image))

    def lend(self, image: StoredImage) -> None:
        """Brings an image of this machine's store to it without a copy: the layers are used where they are.

        Nobody writes to a layer, so any number of nodes may use one; the store must keep it as long as the node runs.
        """
        there, chain = self._ctr("snapshots", "list").split(), ""
        for digest, directory in image.layers:
            parent, chain = chain, _chained(chain, digest)
            if chain in there:  # of another image
                continue
            made = f"lent {chain}"
            [mount] = json.loads(self._ctr("snapshots", "prepare", "--mounts", made, parent))
            options = dict(each.partition("=")[::2] for each in mount["Options"])
            files = Path(options.get("upperdir") or mount["Source"])
            files.rmdir()
            files.symlink_to(directory)
            self._ctr("snapshots", "commit", chain, made)
        self.load(description(self.directory / "image.tar", image))

    def _ctr(self, *words: str) -> str:
        command = [*_ctr(self.directory), "--namespace", "k8s.io", *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

    def kill_kubelet(self) -> None:
        """Loses the node to the control plane: the kubelet is killed and stays away, and containers run on."""
        (self.directory / _AWAY).touch()
        while (self.directory / _RUNS).exists():
            time.sleep(0.1)

    def return_kubelet(self) -> None:
        """Ends that."""
        (self.directory / _AWAY).unlink(missing_ok=True)


def missing() -> str | None:
    """What keeps this machine from being a node; None when nothing does."""
    if os.geteuid() != 0:
        return "root"
    tools = {
        "debootstrap": "debootstrap",
        "runc": "runc",
        "ip": "iproute2",
        "unshare": "util-linux",
        "/usr/lib/cni/bridge": "containernetworking-plugins",
    }
    lacking = [package for tool, package in tools.items() if not shutil.which(tool)]
    if lacking:
        return f"apt-get install {' '.join(lacking)}"
    probe = ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", _PROBE.format(number=os.getpid())]
    allowed = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return (
        None if allowed else "the right to namespaces, mounts, bridges and cgroups (a container has to be privileged)"
    )


@contextmanager
def node(plane: ControlPlane, network: Network) -> Iterator[Node]:
    """A node that is ready, and gone with the block: processes, mounts and cgroups.

    Args:
        plane: which it joins; its data lies beside that one's.
        network: of its pods.

    Raises:
        RuntimeError: it did not become ready; with the kubelet's last words.
    """
    directory = plane.directory
    running = Node(directory, network.address)
    (directory / "containerd.toml").write_text(_CONTAINERD.format(directory=directory, pause=_PAUSE))
    (directory / "kubelet.yaml").write_text(
        _KUBELET.format(directory=directory, address=network.address, slice=_slice(network))
    )
    (directory / "network").mkdir(exist_ok=True)
    (directory / "network" / "pods.conflist").write_text(_NETWORK % (network.bridge, network.subnet))
    _make_cgroups(network)
    namespaces = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc", "--kill-child"]
    script = [str(_HERE / "node.sh"), str(directory), str(binaries()), NODE, network.address, str(_GPUS)]
    plane.start("node", [*namespaces, *script])
    try:
        _wait_for_containerd(directory)
        pause = archive(directory / "pause.tar", _PAUSE, [{"pause": binaries() / "pause"}], entrypoint=["/pause"])
        running.load(pause)
        _wait_until_ready(plane)
        yield running
    finally:
        plane.kill("node")
        _remove_cgroups(network)


def _ctr(directory: Path) -> list[str]:
    return [str(binaries() / "ctr"), "--address", str(directory / "containerd.sock")]


def _chained(parent: str, layer: str) -> str:
    """The name by which containerd knows a layer on top of others: OCI's chain id."""
    return f"sha256:{hashlib.sha256(f'{parent} {layer}'.encode()).hexdigest()}" if parent else layer


def _slice(network: Network) -> str:
    """The cgroup that all of a node's pods are in: two nodes on one machine have one each."""
    return f"finetune{network.number}"


def _wait_for_containerd(directory: Path) -> None:
    asked = [*_ctr(directory), "version"]
    deadline = time.monotonic() + _READY_SECONDS
    while subprocess.run(asked, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"containerd does not answer:\n{_tail(directory / 'containerd.log')}")
        time.sleep(0.2)


def _wait_until_ready(plane: ControlPlane) -> None:
    cluster = Cluster.connect(str(plane.kubeconfig()))
    deadline = time.monotonic() + _READY_SECONDS
    while not any(_is_ready(each) for each in cluster.nodes()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the node does not become ready:\n{_tail(plane.directory / 'kubelet.log')}")
        time.sleep(0.3)


def _is_ready(node: dict[str, object]) -> bool:
    status = node["status"]
    assert isinstance(status, dict)
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ()))
    return ready and int(status.get("allocatable", {}).get("nvidia.com/gpu", 0)) == _GPUS


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else "it has no log"


def _cgroups(network: Network) -> list[Path]:
    """The node's cgroup: one in version 2, one for each controller in version 1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / _slice(network)]
    return [controller / _slice(network) for controller in _CGROUPS.iterdir() if (controller / "tasks").exists()]


def _make_cgroups(network: Network) -> None:
    for cgroup in _cgroups(network):
        cgroup.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 leaves them empty, and then nothing may run there
            if (cgroup / "tasks").exists() and (cgroup / name).exists():
                (cgroup / name).write_text((cgroup.parent / name).read_text())


def _remove_cgroups(network: Network) -> None:
    """The kernel keeps a cgroup until somebody removes it, and that takes that its processes have ended."""
    deadline = time.monotonic() + 10
    for top in (_CGROUPS / _slice(network), *_CGROUPS.glob(f"*/{_slice(network)}")):
        for directory, _, _ in os.walk(top, topdown=False):
            while Path(directory).exists():
                try:
                    Path(directory).rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)


_CONTAINERD = """version = 3
root = "{directory}/containerd"
state = "{directory}/containerd-state"
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true # the pause container wants -998, which takes a capability that root may lack
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{directory}/network"
"""

_KUBELET = """apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{slice}
cgroupsPerQOS: true
containerRuntimeEndpoint: unix://{directory}/containerd.sock
authentication: {{x509: {{clientCAFile: {directory}/pki/ca.crt}}, webhook: {{enabled: false}}, anonymous: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
tlsCertFile: {directory}/pki/kubelet.crt
tlsPrivateKeyFile: {directory}/pki/kubelet.key
address: {address}
healthzPort: 0
failSwapOn: false
enforceNodeAllocatable: []
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 10
volumeStatsAggPeriod: 5s
podLogsDir: {directory}/logs # a kubelet removes what it does not know, and in /var/log/pods that is another node's
imageGCHighThresholdPercent: 100 # never: nobody could pull an image again
evictionHard: {{imagefs.available: 1%, nodefs.available: 1%}}
"""

_NETWORK = """{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "%s", "isGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
"""
