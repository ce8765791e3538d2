"""`make cluster` and `make cluster-down`, in a directory of their own."""

import re
import subprocess
import sys
from pathlib import Path

from examples.cluster import shipped
from tests.conftest import ROOT


def run(command: str, directory: Path) -> str:
    words = [sys.executable, "-m", "examples.cluster", command, str(directory)]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def left(directory: Path, slice_and_bridge: str) -> dict[str, list[str]]:
    """What of a cluster is to be seen on this machine, which may have others."""
    processes = [
        line for line in _lines("ps", "-ww", "-eo", "pid,args") if str(directory) in line and "bin/pytest" not in line
    ]
    return {
        "processes": processes,
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line],
        "bridges": [name for name in _lines("ls", "/sys/class/net") if name == slice_and_bridge],
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{slice_and_bridge}") if path.is_dir()],
        "sockets": [str(path) for path in directory.rglob("*") if path.is_socket()],
    }


def test_cluster_down_leaves_nothing(tmp_path: Path) -> None:
    try:
        assert "make launch" in run("up", tmp_path)
        assert "runs already" in run("up", tmp_path)
        template = (tmp_path / "site" / "job.yaml").read_text()
        [number] = set(re.findall(r"://10\.244\.(\d+)\.1:", template))
        during = left(tmp_path, f"finetune{number}")
    finally:
        run("down", tmp_path)
    ships = shipped.missing() is None
    assert ("finetune-trainer@sha256:" in template, "stand-in" in template) == (ships, not ships)
    empty = [kind for kind, found in during.items() if not found]
    assert empty in ([], ["mounts"]), "else the test looks in the wrong places"
    assert left(tmp_path, f"finetune{number}") == {kind: [] for kind in during}
    assert (tmp_path / "s3").is_dir(), "what S3 holds stays"


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
