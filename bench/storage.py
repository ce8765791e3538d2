"""Moving bytes: one large file and many small ones, beside s5cmd and boto3's own transfer manager.

All sides move the same files to and from the same S3 server on this machine, in turn, each time in a process of its own,
and the median of the rounds counts. A Python side's clock starts when it has imported what it needs; s5cmd's is the whole
process's. Ours computes a SHA-256 and a CRC64NVME and has downloads on the disk before it ends; the others do not.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from examples.demo.server import s3_server

LARGE_BYTES = 1 << 30
FILES, FILE_BYTES = 2_000, 64 << 10
ROUNDS = 5
GOAL, MEMORY_GOAL_MIB = 0.9, 300
_MIB = 1 << 20
_BUCKET = "bench"
_S5CMD = Path(sys.executable).with_name("s5cmd")

_OURS = """
from job.storage.opening import open_storage
from job.storage.transfer import download_all, upload_directory
storage = open_storage("s3://bench/ours")
stats = list(storage.list(""))
start = time.perf_counter()
if way == "up":
    upload_directory(source, storage, "")
else:
    download_all([(storage, stat, target / stat.key) for stat in stats])
"""
_BOTO3 = """
import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
client = boto3.client("s3")
client.head_bucket(Bucket="bench")
start = time.perf_counter()
with create_transfer_manager(client, TransferConfig()) as manager:
    for file in source.iterdir():
        key = f"boto3/{file.name}"
        if way == "up":
            manager.upload(str(file), "bench", key)
        else:
            manager.download("bench", key, str(target / file.name))
"""
_PRELUDE = """
import pathlib, sys, time
way, source, target = sys.argv[1], *map(pathlib.Path, sys.argv[2:4])
"""
_ENDING = """
print(time.perf_counter() - start)
"""


class Run(NamedTuple):
    """One process's work."""

    seconds: float
    peak_bytes: int


def figures() -> list[dict[str, Any]]:
    """Throughput beside s5cmd and boto3, and the memory it takes."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        write_files(home / "large", 1, LARGE_BYTES)
        write_files(home / "small", FILES, FILE_BYTES)
        with s3_server(home / "s3", _BUCKET) as server:
            environment = os.environ | server.environment
            large = _rounds(("ours", "s5cmd"), home / "large", home / "got", environment)
            small = _rounds(("ours", "boto3", "s5cmd"), home / "small", home / "got", environment)
    return [
        *(_large(way, large) for way in ("up", "down")),
        _memory(large),
        *(_small(way, small, "boto3", f">= {1.0}") for way in ("up", "down")),
        *(_small(way, small, "s5cmd", None) for way in ("up", "down")),
    ]
