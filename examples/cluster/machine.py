"""A cluster on this machine: control plane, S3 server and, as root, a node. All of it ends with the block."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.cluster.control_plane import ControlPlane, control_plane
from examples.cluster.network import network
from examples.cluster.node import Node, missing, node
from examples.demo.server import S3Server, s3_server


@dataclass(frozen=True)
class Machine:
    """What runs."""

    plane: ControlPlane
    s3: S3Server
    """At an address that pods and this machine both reach."""
    node: Node | None
    """None where this machine cannot be one."""


@contextmanager
def machine(directory: Path, store: Path, bucket: str) -> Iterator[Machine]:
    """Starts everything.

    Args:
        directory: empty; gets the cluster's data, which is of no use afterwards.
        store: the S3 server's data, which is.
        bucket: made when it is not there.
    """
    with ExitStack() as running:
        if missing():
            plane = running.enter_context(control_plane(directory))
            yield Machine(plane, running.enter_context(s3_server(store, bucket)), None)
            return
        pods = running.enter_context(network())
        s3 = running.enter_context(s3_server(store, bucket, pods.address))
        plane = running.enter_context(control_plane(directory, pods.address))
        yield Machine(plane, s3, running.enter_context(node(plane, pods)))
