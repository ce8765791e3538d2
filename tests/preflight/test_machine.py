"""The pod or machine beside `compute`: control groups of both versions, /dev/shm, compiler, clock, memory."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from job.contract.config import Compute, Dataset, Recipe, Training
from job.contract.disk import GIB
from job.contract.documents import FrozenDataset, FrozenModel, FrozenObject, Spec
from job.contract.errors import ConfigError, LocalIOError
from job.machine import (
    Machine,
    MemoryUse,
    check_compiler,
    check_memory,
    read_machine,
    read_memory_use,
    remarks,
)
from job.preflight import check_machine

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
MACHINE = Machine(memory_bytes=64 * GIB, memory_limit=None, cpus=32, cpu_limit=None, shm_bytes=2 * GIB)
AS_ASKED = Machine(
    memory_bytes=64 * GIB, memory_limit=16 * GIB, cpus=32, cpu_limit=4, shm_bytes=2 * GIB
)  # as the launcher fills in the Job of the default `compute`


def tree(root: Path, files: dict[str, str]) -> Path:
    """A directory with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


V2 = {"memory.max": "8589934592", "cpu.max": "250000 100000"}
V1 = {
    "memory/memory.limit_in_bytes": "8589934592",
    "cpu/cpu.cfs_quota_us": "250000",
    "cpu/cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_limits_are_read_in_both_versions(files: dict[str, str], tmp_path: Path) -> None:
    machine = read_machine(tree(tmp_path, files))
    assert (machine.memory_limit, machine.cpu_limit) == (8 * GIB, 2.5)


UNLIMITED_V2 = {"memory.max": "max", "cpu.max": "max 100000"}
UNLIMITED_V1 = {
    "memory/memory.limit_in_bytes": "9223372036854771712",
    "cpu/cpu.cfs_quota_us": "-1",
    "cpu/cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize("files", [UNLIMITED_V2, UNLIMITED_V1, {}], ids=["v2", "v1", "none"])
def test_without_a_limit_there_is_what_the_machine_has(files: dict[str, str], tmp_path: Path) -> None:
    machine = read_machine(tree(tmp_path, files))
    assert machine.usable_memory == machine.memory_bytes > GIB // 2
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert machine.cpu_limit is None


@pytest.mark.parametrize(("cpus", "limit", "usable"), [(96, 4, 4), (96, 2.5, 3), (96, 0.5, 1), (2, 4, 2), (8, None, 8)])
def test_threads_are_as_many_as_have_a_processor(cpus: int, limit: float | None, usable: int) -> None:
    machine = Machine(memory_bytes=GIB, memory_limit=None, cpus=cpus, cpu_limit=limit, shm_bytes=0)
    assert machine.usable_cpus == usable


OOM_V2 = {
    "memory.max": "8589934592",
    "memory.peak": "8589934000",
    "memory.events": "low 0\nhigh 0\nmax 31\noom 2\noom_kill 3\noom_group_kill 0",
}
OOM_V1 = {
    "memory/memory.limit_in_bytes": "8589934592",
    "memory/memory.max_usage_in_bytes": "8589934000",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3",
}


@pytest.mark.parametrize("files", [OOM_V2, OOM_V1], ids=["v2", "v1"])
def test_what_the_kernel_killed_for_memory_is_counted_in_both_versions(files: dict[str, str], tmp_path: Path) -> None:
    assert read_memory_use(tree(tmp_path, files)) == MemoryUse(oom_kills=3, limit=8 * GIB, peak=8589934000)


OLDER_V2 = {"memory.max": "max", "memory.events": OOM_V2["memory.events"]}  # before Linux 5.19
OLDER_V1 = UNLIMITED_V1 | {"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0"}  # before 4.13


def test_what_older_kernels_do_not_tell_is_not_known(tmp_path: Path) -> None:
    assert read_memory_use(tree(tmp_path / "v2", OLDER_V2)) == MemoryUse(oom_kills=3, limit=None, peak=None)
    assert read_memory_use(tree(tmp_path / "v1", OLDER_V1)) == MemoryUse(oom_kills=None, limit=None, peak=None)
    assert read_memory_use(tmp_path / "none") == MemoryUse(oom_kills=None, limit=None, peak=None)


def said(machine: Machine, compute: Compute | None = None, store_clock: datetime = NOON) -> list[str]:
    return list(remarks(machine, compute or Compute(), NOON, store_clock))


def test_a_pod_as_the_config_says_is_nothing_to_tell() -> None:
    assert said(AS_ASKED) == []
    assert said(MACHINE) == []  # a machine of one's own has more than the default asks for


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Machine(64 * GIB, 8 * GIB, 32, 4, GIB), ["compute.memory_gib is 16, and this pod has 8"]),
        (Machine(64 * GIB, 32 * GIB, 32, 4, GIB), ["compute.memory_gib is 16, and this pod has 32"]),
        (Machine(64 * GIB, 16 * GIB, 32, 0.5, GIB), ["compute.cpus is 4, and this pod has 0.5"]),
        (Machine(64 * GIB, 16 * GIB, 2, 4, GIB), ["compute.cpus is 4, and this machine has 2"]),
        (Machine(int(15.6 * GIB), None, 4, None, GIB), []),
        (Machine(8 * GIB, 2**63 - 4096, 4, None, GIB), ["compute.memory_gib is 16, and this machine has 8"]),
    ],
)
def test_what_differs_from_the_config_is_told(machine: Machine, words: list[str]) -> None:
    assert said(machine) == words


def test_little_shared_memory_matters_to_several_gpus(tmp_path: Path) -> None:
    small = Machine(64 * GIB, None, 32, None, shm_bytes=64 << 20)
    assert said(small) == []
    [words] = said(small, Compute(gpus=2))
    assert words.startswith("/dev/shm has 64 MiB for 2 GPUs")
    assert said(MACHINE, Compute(gpus=2)) == []
    assert read_machine(shm=Path("/dev/shm")).shm_bytes > 0
    assert read_machine(shm=tmp_path / "none").shm_bytes == 0


def test_a_clock_that_is_off_is_told_with_the_numbers() -> None:
    assert said(MACHINE, store_clock=NOON - timedelta(seconds=59)) == []
    [behind] = said(MACHINE, store_clock=NOON + timedelta(minutes=14))
    assert behind.startswith("the clock is 840 s behind the store's")
    [ahead] = said(MACHINE, store_clock=NOON - timedelta(minutes=2))
    assert ahead.startswith("the clock is 120 s ahead of the store's")


def test_a_base_that_no_memory_holds_is_refused_on_a_cpu_alone() -> None:
    weights = 9 * GIB
    check_memory(MACHINE, 0, weights)
    check_memory(AS_ASKED, 1, weights)
    with pytest.raises(ConfigError) as caught:
        check_memory(AS_ASKED, 0, weights)
    expected = "the base model's weights take 18.0 GiB on a CPU, and there are 16.0 GiB of memory"
    assert caught.value.message == expected


@pytest.fixture
def triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with Triton, a compiler that is `gcc` on PATH, and a Python.h; its directory."""
    tree(tmp_path, {"packages/triton.py": "", "bin/gcc": "", "include/Python.h": ""})
    (tmp_path / "bin/gcc").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_a_compiler_and_its_headers_are_enough(triton: Path) -> None:
    check_compiler(1, triton / "include")
    (triton / "bin/gcc").rename(triton / "bin/clang")
    check_compiler(1, triton / "include")


def test_what_triton_lacks_is_named(triton: Path) -> None:
    (triton / "bin/gcc").rename(triton / "bin/cc")  # Triton asks for the other two names
    with pytest.raises(ConfigError, match=r"lacks a C compiler \(gcc or clang\) on PATH and /none/Python\.h"):
        check_compiler(2, Path("/none"))
    with pytest.raises(ConfigError, match=r"lacks a C compiler \(gcc or clang\) on PATH$"):
        check_compiler(1, triton / "include")
    check_compiler(0, Path("/none"))


def spec(weight_bytes: int) -> Spec:
    recipe = Recipe(name="bot", base_model="/base", dataset=Dataset(train="/rows"), training=Training(max_steps=1))
    weights = FrozenObject(uri="/base/model.safetensors", size=weight_bytes, etag="1")
    rows = FrozenObject(uri="/rows", size=1, etag="1")
    return Spec(
        recipe=recipe,
        gpus=0,
        base_model=FrozenModel(uri="/base", files=(weights,)),
        dataset=FrozenDataset(train=(rows,)),
        image=None,
        code_version="1",
    )


def test_a_machine_is_checked_in_one_go(tmp_path: Path) -> None:
    asks_much = Compute(gpus=0, memory_gib=1e6, cpus=1e6)
    with capture_logs() as logs:
        check_machine(asks_much, spec(weight_bytes=1), tmp_path, datetime.now(UTC) - timedelta(hours=1))
    assert logs[0]["event"] == "device"
    warnings = [entry["remark"] for entry in logs if entry["log_level"] == "warning"]
    assert [words.split(", and")[0] for words in warnings[:2]] == [
        "compute.memory_gib is 1e+06",
        "compute.cpus is 1e+06",
    ]
    assert warnings[2].startswith("the clock is 36")


def test_what_a_machine_cannot_do_ends_the_run(tmp_path: Path) -> None:
    cpu = Compute(gpus=0)
    with pytest.raises(ConfigError, match="the base model's weights take"):
        check_machine(cpu, spec(weight_bytes=1 << 50), tmp_path, datetime.now(UTC))
    rows = FrozenObject(uri="s3://bucket/rows", size=1 << 50, etag="1")
    too_large = spec(weight_bytes=1).model_copy(update={"dataset": FrozenDataset(train=(rows,))})
    with pytest.raises(LocalIOError, match="the run needs"):
        check_machine(cpu, too_large, tmp_path, datetime.now(UTC))
