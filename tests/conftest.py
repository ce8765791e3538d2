"""What every room's tests may ask for: a real S3 server, a fresh place in it, and what ships."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import boto3
import pytest
import yaml
from hypothesis import settings

from examples.cache import CACHE
from examples.demo.server import s3_server
from job.storage.s3_client import forget_client
from launcher.manifest import Manifest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

settings.register_profile("tests", deadline=None)  # no test asserts a time
settings.load_profile("tests")

ROOT = Path(__file__).parents[1]
_BUCKET = "tests"


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS server; its S3 endpoint, which the AWS_* variables name as long as the tests run."""
    with s3_server(tmp_path_factory.mktemp("seaweed"), _BUCKET) as server, pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        for name, value in server.environment.items():
            environment.setenv(name, value)
        forget_client()
        yield server.endpoint


@pytest.fixture
def s3(seaweed: str) -> "S3Client":
    """A plain client of that server, for what our own storage does not do."""
    return boto3.client("s3")


@pytest.fixture
def bucket(seaweed: str) -> str:
    """A root in the S3 server that no other test uses, `s3://bucket/prefix`."""
    return f"s3://{_BUCKET}/{uuid4().hex}"


@pytest.fixture(scope="session")
def llama_cpp() -> Path:
    """The converter's directory, as `make llama-cpp` prepares it."""
    prepared = subprocess.run(
        [ROOT / "docker" / "llama-cpp.sh", CACHE],
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(prepared.stdout.strip())


@pytest.fixture
def template() -> Manifest:
    """The Job template that ships."""
    shipped: Manifest = yaml.safe_load((ROOT / "k8s" / "job.yaml").read_bytes())
    return shipped
