"""Moving bytes: one large file and many small ones, beside s5cmd and boto3's own transfer manager.

All sides move the same files to and from the same S3 server on this machine, in turn, each time in a process of its own,
and the median of the rounds counts. A Python side's clock starts when it has imported what it needs; s5cmd's is the whole
process's. Ours computes a SHA-256 and a CRC64NVME and has downloads on the disk before it ends; the others do not.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import Figure, at_least, at_most
from bench.processes import PEAK_KIB
from examples.demo.server import s3_server

LARGE_BYTES = 1 << 30
FILES, FILE_BYTES = 2_000, 64 << 10
ROUNDS = 3
GOAL, MEMORY_GOAL_MIB = 0.9, 300
WAYS = ("up", "down")
_CHUNK_BYTES = 1 << 20
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
import pathlib, re, sys, time
way, source, target = sys.argv[1], *map(pathlib.Path, sys.argv[2:4])
"""
_ENDING = f"""
print(time.perf_counter() - start, {PEAK_KIB})
"""


class Run(NamedTuple):
    """One process's work."""

    rate: float
    """In MB/s."""
    peak_mib: float
    """The most memory that it had; 0 of s5cmd, which does not tell."""


Runs = dict[tuple[str, str], list[Run]]
"""By way and side."""


def figures() -> list[Figure]:
    """Throughput beside s5cmd and boto3, and the memory that ours takes."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        write_files(home / "large", 1, LARGE_BYTES)
        write_files(home / "small", FILES, FILE_BYTES)
        with s3_server(home / "s3", "bench") as server:
            environment = os.environ | server.environment
            large = measure(("ours", "s5cmd"), home / "large", environment)
            small = measure(("ours", "boto3", "s5cmd"), home / "small", environment)
    peak = max(run.peak_mib for way in WAYS for run in large[way, "ours"])
    return [
        *(
            at_least(f"1 GiB {way}, beside s5cmd", _rate(large[way, "ours"]), _rate(large[way, "s5cmd"]), GOAL)
            for way in WAYS
        ),
        at_most("1 GiB, peak memory beside what is allowed", peak, MEMORY_GOAL_MIB, 1, "MiB"),
        *(
            at_least(
                f"{FILES} small files {way}, beside boto3", _rate(small[way, "ours"]), _rate(small[way, "boto3"]), 1
            )
            for way in WAYS
        ),
        *(
            at_least(
                f"{FILES} small files {way}, beside s5cmd", _rate(small[way, "ours"]), _rate(small[way, "s5cmd"]), 0
            )
            for way in WAYS
        ),
    ]


def write_files(directory: Path, count: int, size: int) -> None:
    """Files of random bytes, the same for the same size."""
    directory.mkdir()
    chance = random.Random(size)
    for number in range(count):
        with (directory / f"{number:04d}").open("wb") as file:
            for _ in range(0, size, _CHUNK_BYTES):
                file.write(chance.randbytes(min(size, _CHUNK_BYTES)))


def measure(sides: tuple[str, ...], source: Path, environment: Mapping[str, str]) -> Runs:
    """Each side's runs: in each round all of them up and down, one after the other."""
    runs: Runs = {(way, side): [] for way in WAYS for side in sides}
    for _ in range(ROUNDS):
        for side in sides:
            for way in WAYS:
                with tempfile.TemporaryDirectory(dir=source.parent) as target:
                    os.sync()  # what an earlier run left to write is not this one's work
                    runs[way, side].append(_run(side, way, source, Path(target), environment))
    return runs


def _run(side: str, way: str, source: Path, target: Path, environment: Mapping[str, str]) -> Run:
    start = time.perf_counter()
    done = subprocess.run(
        _command(side, way, source, target, environment), env=environment, stdout=subprocess.PIPE, check=False
    )
    whole = time.perf_counter() - start
    expected, found = _bytes_in(source), _bytes_in(target)
    if done.returncode or (way == "down" and found != expected):
        raise AssertionError(f"{side} {way} ended with {done.returncode}, {found} bytes of {expected}")
    seconds, peak_kib = (whole, 0) if side == "s5cmd" else map(float, done.stdout.split())
    return Run(expected / 1e6 / seconds, peak_kib / 1024)


def _command(side: str, way: str, source: Path, target: Path, environment: Mapping[str, str]) -> list[str]:
    if side == "s5cmd":
        places = [f"{source}/", "s3://bench/s5cmd/"] if way == "up" else ["s3://bench/s5cmd/*", f"{target}/"]
        return [str(_S5CMD), f"--endpoint-url={environment['AWS_ENDPOINT_URL_S3']}", "--log=error", "cp", *places]
    program = _PRELUDE + {"ours": _OURS, "boto3": _BOTO3}[side] + _ENDING
    return [sys.executable, "-c", program, way, str(source), str(target)]


def _rate(runs: Sequence[Run]) -> float:
    return median(run.rate for run in runs)


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
