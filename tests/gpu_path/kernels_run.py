"""Starts `kernels.py` in a process of its own, on the emulated card or on a real one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

from job.environment import environment
from tests.gpu_path.runs import emulated


class Check(TypedDict):
    """One kernel alone."""

    apart: float
    """The largest relative difference to torch."""
    launches: dict[str, int]


Found = dict[str, Check]


def run_kernels(place: Path) -> Found:
    """The checks by name."""
    (place / "tmp").mkdir(parents=True)
    variables = environment(place, place, place, 1, (), os.environ) | emulated("bfloat16")
    command = [sys.executable, "-m", "tests.gpu_path.kernels", str(place / "found.json")]
    done = subprocess.run(command, env=variables, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    checks: Found = json.loads((place / "found.json").read_text())
    return checks
