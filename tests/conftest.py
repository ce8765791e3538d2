"""What every room's tests may ask for: a real S3 server, and a fresh place in it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import urlopen
from uuid import uuid4

import boto3
import pytest

from job.storage.s3_client import forget_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BUCKET = "tests"
_PARTS = ("master", "volume", "filer", "s3", "admin")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(url: str) -> bool:
    """Whether a web server answers there, be it with an error."""
    try:
        urlopen(url, timeout=5).close()
    except HTTPError as error:
        error.close()
    except (URLError, OSError):
        return False
    return True


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS server; its S3 endpoint, which the AWS_* variables name as long as the tests run."""
    home = tmp_path_factory.mktemp("seaweed")
    ports = free_ports(2 * len(_PARTS))
    flags = [f"-{part}.port{kind}={ports.pop()}" for part in _PARTS for kind in ("", ".grpc")]
    endpoint = f"http://127.0.0.1:{next(flag for flag in flags if flag.startswith('-s3.port=')).partition('=')[2]}"
    with pytest.MonkeyPatch.context() as environment, (home / "log").open("wb") as log:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("AWS_ACCESS_KEY_ID", "tests")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        server = subprocess.Popen(
            [
                Path(sys.executable).with_name("weed"),
                "mini",
                f"-dir={home / 'data'}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                f"-bucket={_BUCKET}",
                "-s3.autoCreateBucket=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-webdav=false",
                "-admin.ui=false",
                "-master.telemetry=false",
                f"-s3.localSocket={home / 's3.sock'}",
                f"-filer.localSocket={home / 'filer.sock'}",
                *flags,
            ],
            stdout=log,
            stderr=log,
        )
        forget_client()
        try:
            deadline = time.monotonic() + 60
            while not answers(f"{endpoint}/{_BUCKET}") or b"All enabled components" not in (home / "log").read_bytes():
                assert server.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.2)
            yield endpoint
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def s3(seaweed: str) -> "S3Client":
    """A plain client of that server, for what our own storage does not do."""
    return boto3.client("s3")


@pytest.fixture
def bucket(seaweed: str) -> str:
    """A root in the S3 server that no other test uses, `s3://bucket/prefix`."""
    return f"s3://{_BUCKET}/{uuid4().hex}"
