"""This pod or machine beside what `compute` asks for: memory, processors, shared memory, compiler, clock."""

import importlib.util
import math
import os
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from job.contract.config import Compute
from job.contract.disk import GIB
from job.contract.errors import ConfigError

_CGROUP = Path("/sys/fs/cgroup")
_NOMINAL = 0.05  # a machine of 16 GiB has 15.6
_SHM_BYTES = GIB  # what NCCL's guide asks containers for; their default is 64 MiB
_UNLIMITED = 1 << 62  # version 1 says the largest number that it has
_SKEW_SECONDS = 60
_HEADERS = Path(sysconfig.get_paths("posix_prefix")["include"])  # as triton/runtime/build.py looks for them


@dataclass(frozen=True)
class Machine:
    """What this process may use."""

    memory_bytes: int
    """Of the machine."""
    memory_limit: int | None
    """Of the control group, in bytes; None: as much as there is."""
    cpus: int
    """Those that this process may run on."""
    cpu_limit: float | None
    """Of the control group; None: as many as there are."""
    shm_bytes: int
    """Size of /dev/shm."""

    @property
    def usable_memory(self) -> int:
        """What there is of it, in bytes, or what of it is granted."""
        return min(self.memory_bytes, self.memory_limit or self.memory_bytes)

    @property
    def usable_cpus(self) -> int:
        """How many threads have a processor each: what there are of them, or what of them is granted."""
        return max(1, math.ceil(min(self.cpus, self.cpu_limit or self.cpus)))


def read_machine(cgroup: Path = _CGROUP, shm: Path = Path("/dev/shm")) -> Machine:
    """This machine, and the limits of the control group that a container sees as its root."""
    return Machine(
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_limit=_memory_limit(cgroup),
        cpus=len(os.sched_getaffinity(0)),
        cpu_limit=_cpu_limit(cgroup),
        shm_bytes=shutil.disk_usage(shm).total if shm.is_dir() else 0,
    )


@dataclass(frozen=True)
class MemoryUse:
    """What the control group has counted since it was made."""

    oom_kills: int | None
    """Processes that the kernel killed for memory; None where it is not told."""
    limit: int | None
    """In bytes; None: as much as there is."""
    peak: int | None
    """The most that was used at a time, in bytes; None where it is not told."""


def read_memory_use(cgroup: Path = _CGROUP) -> MemoryUse:
    """The memory of the control group that a container sees as its root."""
    events = _first(cgroup / "memory.events", cgroup / "memory/memory.oom_control")
    counted = dict(line.split() for line in events.splitlines())
    peak = _first(cgroup / "memory.peak", cgroup / "memory/memory.max_usage_in_bytes")
    return MemoryUse(
        oom_kills=int(counted["oom_kill"]) if "oom_kill" in counted else None,
        limit=_memory_limit(cgroup),
        peak=int(peak) if peak else None,
    )


def _memory_limit(cgroup: Path) -> int | None:
    limit = _first(cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes")
    return None if limit in ("", "max") or int(limit) >= _UNLIMITED else int(limit)


def _cpu_limit(cgroup: Path) -> float | None:
    """The quota of each period, over the period."""
    v2 = _first(cgroup / "cpu.max")
    quota, period = (
        v2.split()
        if v2
        else (
            _first(cgroup / "cpu/cpu.cfs_quota_us") or "-1",
            _first(cgroup / "cpu/cpu.cfs_period_us") or "1",
        )
    )
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _first(*paths: Path) -> str:
    """What the first of these files says that is there; version 2 of control groups has some, version 1 others."""
    return next((path.read_text().strip() for path in paths if path.is_file()), "")


def remarks(machine: Machine, compute: Compute, clock: datetime, store_clock: datetime) -> Iterator[str]:
    """What is not as the config says or as it should be, and does not stop the run: a sentence each."""
    limit = machine.memory_limit
    yield from _differs(
        "memory_gib", compute.memory_gib, machine.memory_bytes / GIB, None if limit is None else limit / GIB
    )
    yield from _differs("cpus", compute.cpus, machine.cpus, machine.cpu_limit)
    if compute.gpus > 1 and machine.shm_bytes < _SHM_BYTES:
        yield (
            f"/dev/shm has {machine.shm_bytes / 2**20:.0f} MiB for {compute.gpus} GPUs: NCCL may end with a bus error "
            "where GPUs talk through it; mount an emptyDir of medium Memory there"
        )
    ahead = (clock - store_clock).total_seconds()
    if abs(ahead) > _SKEW_SECONDS:
        yield (
            f"the clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's: "
            "S3 refuses requests from 900 s on"
        )


def _differs(key: str, asked: float, there: float, limit: float | None) -> Iterator[str]:
    """Less than was asked for is told of a machine, less and more of a pod, whose limit should say the same."""
    is_limited = limit is not None and limit < there
    has = limit if limit is not None and is_limited else there
    if has < asked * (1 - _NOMINAL) or (is_limited and has > asked * (1 + _NOMINAL)):
        yield f"compute.{key} is {asked:g}, and this {'pod' if is_limited else 'machine'} has {has:.3g}"


def check_memory(machine: Machine, gpus: int, weight_bytes: int) -> None:
    """Refuse a CPU run whose base model does not fit by far. A GPU run holds no weights in main memory.

    Args:
        machine: where it would run.
        gpus: `compute.gpus`.
        weight_bytes: size of the base's safetensors, which are taken to be of 16 bits.

    Raises:
        ConfigError: its weights alone are larger than the memory.
    """
    needed = 2 * weight_bytes  # float32
    if gpus == 0 and needed > machine.usable_memory:
        raise ConfigError(
            f"the base model's weights take {needed / GIB:.1f} GiB on a CPU, and there are "
            f"{machine.usable_memory / GIB:.1f} GiB of memory",
            "Raise compute.memory_gib, take a smaller base_model, or use a GPU.",
        )


def check_compiler(gpus: int, headers: Path = _HEADERS) -> None:
    """Refuse a GPU run without what Triton compiles its launchers with, at the first step and deep in a traceback.

    Raises:
        ConfigError: no compiler, or no Python.h. Neither another node nor another attempt would have them.
    """
    if gpus == 0 or importlib.util.find_spec("triton") is None:
        return
    missing = [] if shutil.which("gcc") or shutil.which("clang") else ["a C compiler (gcc or clang) on PATH"]
    if not (headers / "Python.h").is_file():
        missing.append(f"{headers}/Python.h")
    if missing:
        raise ConfigError(
            f"compute.gpus is {gpus}, and Triton, which compiles for GPUs at run time, lacks {' and '.join(missing)}",
            "Run this version's image, or install gcc, libc6-dev and the headers of this Python.",
        )
